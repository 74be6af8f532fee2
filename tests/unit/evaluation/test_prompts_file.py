"""Files of validation prompts: every format, what is left out, and errors with row and column."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.core.errors import TaskError
from engine.evaluation import prompts_file
from engine.task.identity import canonical
from engine.task.task import Prompt
from tests.support.tasks import MINIMAL, read

ROWS = [
    Prompt(prompt="a cat, asleep", width=96, num_frames=9, guidance_scale=3.0, seed=7),
    Prompt(prompt='a "dog"', negative_prompt="rain"),
]
RECORDS = [
    {"prompt": "a cat, asleep", "width": 96, "num_frames": 9, "guidance_scale": 3, "seed": 7},
    {"prompt": 'a "dog"', "negative_prompt": "rain"},
]
CSV = """prompt,negative_prompt,width,num_frames,guidance_scale,seed
"a cat, asleep",, 96,9,3,7
"a ""dog\""",rain
"""


def write(path, content):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", CSV),
        ("rows.tsv", CSV.replace(",", "\t").replace("cat\t", "cat,")),
        ("rows.json", json.dumps(RECORDS)),
        ("rows.jsonl", "\n".join(map(json.dumps, RECORDS))),
        # pandas stores whole numbers as floats where a cell is empty
        ("rows.parquet", [RECORDS[0] | {"width": 96.0, "seed": 7.0, "negative_prompt": None}, RECORDS[1]]),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    if name.endswith("parquet"):
        keys = ("prompt", "negative_prompt", "width", "num_frames", "guidance_scale", "seed")
        content = [{key: row.get(key) for key in keys} for row in content]
    assert list(prompts_file.read(write(tmp_path / name, content))) == ROWS


def test_a_task_with_a_file_is_the_task_with_its_rows(tmp_path):
    file = write(tmp_path / "rows.json", json.dumps(RECORDS))
    named = prompts_file.with_prompts(read(MINIMAL | {"validation": {"prompts_file": str(file)}}))
    inline = read(MINIMAL | {"validation": {"prompts": RECORDS}})
    assert canonical(named) == canonical(inline) and named.validation.given_prompts == inline.validation.given_prompts
    file.write_text(json.dumps(RECORDS[:1]))
    changed = prompts_file.with_prompts(read(MINIMAL | {"validation": {"prompts_file": str(file)}}))
    assert canonical(changed) != canonical(named)
    assert prompts_file.with_prompts(inline) is inline


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.csv",
            "prompt,width\na,64\nb,wide\n",
            r'row 1 of rows\.csv .*column width: got "wide", expected an integer of',
        ),
        ("rows.csv", "prompt,width\na,65\n", r"row 0 .*column width: got 65, expected an integer .* divisible by 8"),
        ("rows.csv", "prompt,seed\na,1e400\n", r'column seed: got "1e400", expected an integer'),
        ("rows.csv", "text\na cat\n", r"column prompt: missing"),
        (
            "rows.jsonl",
            '{"prompt": "a", "widht": 64}',
            r"column widht: got 64 for an unknown key, did you mean width\?",
        ),
        ("rows.json", '[{"prompt": 3}]', r"row 0 .*column prompt: got 3, expected a string"),
        ("rows.json", '["a"]', r"row 0 of rows\.json is 'a'; expected an object"),
        ("rows.json", "[]", r"rows\.json has no rows"),
        ("rows.jsonl", '{"prompt": "a"}\n' * 11, r"more than 10 rows: expected a row for each prompt, at most 10"),
        ("rows.jsonl", "{", r"rows\.jsonl"),
        ("rows.txt", "a cat", r"is rows\.txt: expected a name that ends with \.csv, \.tsv, \.json, \.jsonl, \.parquet"),
        (
            "rows.parquet",
            [{"prompt": "a", "image": b"0"}],
            r"rows\.parquet has a column 'image'; the known ones are prompt",
        ),
        ("rows.parquet", [{"prompt": "a", "seed": -1}], r"row 0 of rows\.parquet .*column seed: got -1"),
    ],
)
def test_what_is_wrong_is_named_with_row_and_column(tmp_path, name, content, message):
    with pytest.raises(TaskError, match=rf"^validation\.prompts_file.*{message}") as caught:
        prompts_file.read(write(tmp_path / name, content))
    assert caught.value.code == 2


def test_a_file_that_is_missing_broken_or_large_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"there is no file .*rows\.csv .*a local file is expected"):
        prompts_file.read(tmp_path / "rows.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TaskError, match=r"broken\.parquet cannot be read as parquet"):
        prompts_file.read(tmp_path / "broken.parquet")
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(TaskError, match=r"large\.csv has more than 16 MiB"):
        prompts_file.read(tmp_path / "large.csv")

"""Which of a folder's tables are the dataset's: what lies beside captioned pictures is nobody's mistake."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.core.errors import DatasetError
from tests.support.datasets import PICTURES, embedded_table, opened, picture, write_tar

PRESET = {"learning_rate": 0.0001, "optimizer": "AdamW", "networks": [{"dim": 8}], "text_encoder": None}
TASK = {"model": {"name": "m"}, "dataset": {"name": "."}, "train_args": {}}

STRAYS = {
    "a preset on one line": ("preset.json", json.dumps(PRESET)),
    "a preset on many lines": ("preset.json", json.dumps(PRESET, indent=2)),
    "a preset behind blank lines": ("preset.json", "\n" * 99 + json.dumps(PRESET, indent=2)),
    "a task": ("task.json", json.dumps(TASK, indent=1)),
    "a workflow": ("workflow.json", json.dumps({"nodes": [1, 2], "links": []}, indent=1)),
    "a list of numbers": ("numbers.json", "[1, 2]"),
    "a number": ("number.json", "3"),
    "broken JSON": ("x.json", "{"),
    "an empty file": ("x.json", ""),
    "a log": ("log.jsonl", '{"step": 1}\n{"step": 2}\n'),
    "a log that was cut off": ("log.jsonl", '{"step": 1}\n{"st'),
    "a CSV in Latin-1": ("notes.csv", "name;price\nbär;3\n".encode("latin-1")),
    "a CSV in UTF-16": ("notes.csv", "name;price\nbär;3\n".encode("utf-16")),
    "a CSV of semicolons": ("notes.csv", "name;price\nb;3,5\nc;4\n"),
    "a CSV with fields too many": ("notes.csv", "name,price\nb,3,5\n"),
    "a broken tar": ("backup.tar", b"no tar" * 99),
    "a tar of other things": ("backup.tar", None),
    "statistics": ("statistics.parquet", pa.table({"mean": [0.5]})),
    "a broken Parquet file": ("x.parquet", b"PAR1 no"),
    "splits that are none": ("val.json", json.dumps(PRESET)),
}


def captioned(folder, count=3):
    folder.mkdir()
    for index in range(count):
        (folder / f"{index}.png").write_bytes(PICTURES[index])
        (folder / f"{index}.txt").write_text(f"caption {index}")
    return folder


def put(path, data):
    if isinstance(data, pa.Table):
        pq.write_table(data, path)
    elif data is None:
        write_tar(path, [("readme.md", b"x"), ("photo.jpg", PICTURES[0])])
    else:
        path.write_bytes(data.encode() if isinstance(data, str) else data)


def rows(dataset):
    return [(dataset.image_bytes(row), dataset.captions(row)) for row in range(len(dataset))]


@pytest.mark.parametrize("case", STRAYS)
def test_what_is_none_of_ours_is_passed_over(case, tmp_path):
    name, data = STRAYS[case]
    alone = opened(tmp_path, name=captioned(tmp_path / "alone"))
    folder = captioned(tmp_path / "data")
    put(folder / name, data)
    lines = []
    beside = opened(tmp_path, name=folder, report=lines.append)
    assert (rows(beside), beside.fingerprint) == (rows(alone), alone.fingerprint)
    (line,) = [line for line in lines if "without a table" not in line]
    assert line.startswith("dataset: 1 data file is not used, it ") and line.endswith(name)


def test_many_at_once_are_counted_by_reason(tmp_path):
    folder = captioned(tmp_path / "data")
    for name, data in STRAYS.values():
        put(folder / name, data)
    lines = []
    assert len(opened(tmp_path, name=folder, report=lines.append)) == 3
    assert len(lines) <= 4
    assert all(len(line) < 250 for line in lines)


def test_folders_that_say_it_are_captions_too(tmp_path):
    (tmp_path / "data/10_sks dog").mkdir(parents=True)
    (tmp_path / "data/10_sks dog/a.png").write_bytes(PICTURES[0])
    put(tmp_path / "data/preset.json", json.dumps(PRESET, indent=2))
    assert opened(tmp_path, name=tmp_path / "data").captions(0) == ("sks dog",)


def test_with_a_default_caption_only_what_is_not_about_images_is_passed_over(tmp_path):
    folder = captioned(tmp_path / "data")
    for text in folder.glob("*.txt"):
        text.unlink()
    put(folder / "preset.json", json.dumps(PRESET, indent=2))
    assert opened(tmp_path, name=folder, default_caption="x").captions(0) == ("x",)
    put(folder / "captions.csv", "filename,caption\n0.png,a cat\n")
    with pytest.raises(DatasetError, match=r"captions\.csv has no column 'image'.*filename"):
        opened(tmp_path, name=folder, default_caption="x")


def test_a_table_about_images_that_lacks_a_column_is_told_in_full(tmp_path):
    folder = captioned(tmp_path / "data")
    put(folder / "rows.jsonl", '{"image": "0.png", "caption": "a cat"}\n')
    lines = []
    assert opened(tmp_path, name=folder, report=lines.append).captions(0) == ("caption 0",)
    assert any("rows.jsonl has no column 'text'" in line and "caption (text)" in line for line in lines)


def test_without_captions_the_table_is_missed(tmp_path):
    folder = captioned(tmp_path / "data")
    for text in folder.glob("*.txt"):
        text.unlink()
    put(folder / "preset.json", json.dumps(PRESET, indent=2))
    with pytest.raises(DatasetError, match=r"preset\.json has no column 'image'"):
        opened(tmp_path, name=folder)


def test_the_next_kind_of_table_is_tried(tmp_path):
    (tmp_path / "data").mkdir()
    put(tmp_path / "data/statistics.parquet", pa.table({"mean": [0.5]}))
    put(tmp_path / "data/log.jsonl", '{"step": 1}\n')
    (tmp_path / "data/a.png").write_bytes(PICTURES[0])
    put(tmp_path / "data/rows.csv", "image,text\na.png,a cat\n")
    lines = []
    assert rows(opened(tmp_path, name=tmp_path / "data", report=lines.append)) == [(PICTURES[0], ("a cat",))]
    assert len(lines) == 1 and "2 data files are not used" in lines[0]


def test_beside_a_table_of_ours_another_of_its_kind_is_passed_over(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(embedded_table(), tmp_path / "data/rows.parquet")
    put(tmp_path / "data/statistics.parquet", pa.table({"mean": [0.5]}))
    assert len(opened(tmp_path, name=tmp_path / "data")) == 3


def test_a_stray_says_nothing_about_splits(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(PICTURES[0])
    put(tmp_path / "data/captions.json", '[{"image": "a.png", "text": "a cat"}]')
    put(tmp_path / "data/eval_results.json", '{"loss": 0.1}')
    put(tmp_path / "data/train_log.json", '{"loss": 0.1}')
    lines = []
    assert rows(opened(tmp_path, name=tmp_path / "data", report=lines.append)) == [(PICTURES[0], ("a cat",))]
    assert all(any(name in line for line in lines) for name in ("eval_results.json", "train_log.json"))


def test_another_split_never_stands_in_for_the_training_one(tmp_path):
    (tmp_path / "data").mkdir()
    put(tmp_path / "data/train.jsonl", '{"image": "a.png", "caption": "a cat"}')
    put(tmp_path / "data/test.jsonl", '{"image": "a.png", "text": "a cat"}')
    with pytest.raises(DatasetError, match=r"train\.jsonl has no column 'text'"):
        opened(tmp_path, name=tmp_path / "data")


def test_a_damaged_table_is_no_stray(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(embedded_table(), tmp_path / "data/rows-0.parquet")
    put(tmp_path / "data/rows-1.parquet", b"PAR1 no")
    with pytest.raises(DatasetError, match=r"rows-1\.parquet cannot be read"):
        opened(tmp_path, name=tmp_path / "data")


@pytest.mark.parametrize("indent", [None, 2])
def test_white_space_decides_nothing(tmp_path, indent):
    """Neither of one row nor of several, in a list or one after the other."""
    made = [{"image": f"{index}.png", "text": f"t{index}"} for index in range(3)]
    texts = {
        "list": json.dumps(made, indent=indent),
        "values": "\n".join(json.dumps(row, indent=indent) for row in made),
        "on one line": " ".join(json.dumps(row, indent=indent) for row in made),
        "one": json.dumps(made[0], indent=indent),
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.json").write_text(text)
        for index in range(3):
            (tmp_path / name / f"{index}.png").write_bytes(PICTURES[index])
        dataset = opened(tmp_path, name=tmp_path / name)
        assert [dataset.captions(row)[0] for row in range(len(dataset))] == ["t0", "t1", "t2"][
            : 1 if name == "one" else 3
        ]


# ----------------------------------------------------------------------------------------------- img2dataset's output


def downloaded(index):
    return {"url": f"https://h/{index}.png", "caption": f"cat {index}", "key": f"{index:09}", "status": "success"}


def shard(folder, name="00000"):
    folder.mkdir(exist_ok=True)
    table = pa.table({key: [downloaded(index)[key] for index in range(3)] for key in downloaded(0)})
    pq.write_table(table, folder / f"{name}.parquet")
    put(folder / f"{name}_stats.json", json.dumps({"count": 3, "successes": 3}, indent=4))


def test_img2datasets_webdataset_form(tmp_path):
    shard(tmp_path / "data")
    members = [
        (f"{index:09}.{suffix}", content)
        for index in range(3)
        for suffix, content in (
            ("jpg", picture(index)),
            ("json", json.dumps(downloaded(index), indent=4).encode()),
            ("txt", f"cat {index}".encode()),
        )
    ]
    write_tar(tmp_path / "data/00000.tar", members)
    lines = []
    assert rows(opened(tmp_path, name=tmp_path / "data", report=lines.append)) == [
        (picture(index), (f"cat {index}",)) for index in range(3)
    ]
    assert len(lines) == 1 and "00000.parquet, 00000_stats.json" in lines[0]


def test_img2datasets_files_form(tmp_path):
    shard(tmp_path / "data")
    (tmp_path / "data/00000").mkdir()
    for index in range(3):
        stem = tmp_path / f"data/00000/{index:09}"
        stem.with_suffix(".jpg").write_bytes(picture(index))
        stem.with_suffix(".txt").write_text(f"cat {index}")
        put(stem.with_suffix(".json"), json.dumps(downloaded(index), indent=4))
    assert rows(opened(tmp_path, name=tmp_path / "data")) == [(picture(index), (f"cat {index}",)) for index in range(3)]

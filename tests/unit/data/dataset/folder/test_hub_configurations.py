"""A clone of a Hub dataset with configurations in its README.md: what `datasets.load_dataset` of it would train on."""

import json
import re
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import DatasetError
from engine.data.dataset.folder.hub_configurations import glob_matches
from tests.support.datasets import PICTURES, embedded_table, opened, picture


def table(path, *numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = embedded_table([picture(number) for number in numbers], [str(number) for number in numbers])
    if path.suffix == ".parquet":
        pq.write_table(data, path)
    else:
        rows = [{"image": f"{number}.png", "text": str(number)} for number in numbers]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def folder_of_images(folder, *numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(picture(number))
    rows = [{"file_name": f"{number}.png", "text": str(number)} for number in numbers]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def readme(folder, configs, name="README.md"):
    folder.mkdir(parents=True, exist_ok=True)
    text = f"configs: {json.dumps(configs)}\n"  # JSON is YAML
    (folder / name).write_text(text if name.endswith("yaml") else f"---\nlicense: mit\n{text}---\n# cats\n")


def split(name, *paths):
    return {"split": name, "path": list(paths) if len(paths) != 1 else paths[0]}


def tables(folder):
    table(folder / "a/x.parquet", 1, 2)
    table(folder / "b/y.parquet", 3, 4, 5)
    table(folder / "b/z.parquet", 6)
    table(folder / "b/deep/w.parquet", 7)


SMALL = {"config_name": "small", "default": True, "data_files": [split("train", "a/*.parquet")]}
BIG = {"config_name": "big", "data_files": [split("train", "b/*.parquet"), split("test", "a/x.parquet")]}

CASES = {
    "default": (tables, [SMALL, BIG], None),
    "named": (tables, [SMALL, BIG], "big"),
    "called default": (tables, [BIG, {"config_name": "default", "data_files": "b/z.parquet"}], None),
    "the only one": (tables, [{"config_name": "x", "data_files": ["b/z.parquet", "a/*"]}], None),
    "stars over folders": (tables, [{"config_name": "x", "data_files": "**/*.parquet"}], None),
    "two stars at the end": (tables, [{"config_name": "x", "data_files": "b/**"}], None),
    "a question mark and a class": (tables, [{"config_name": "x", "data_files": "b/[y-z].parq?et"}], None),
    "several paths, one twice": (tables, [{"config_name": "x", "data_files": [split("train", "b/z*", "b/*")]}], None),
    "a split of its own name": (tables, [{"config_name": "x", "data_files": [split("extra", "a/*")]}], None),
    "train is not the first": (
        tables,
        [{"config_name": "x", "data_files": [split("test", "a/*"), split("train", "b/*")]}],
        None,
    ),
    "a folder": (tables, [{"config_name": "x", "data_dir": "a"}, {"config_name": "y", "data_dir": "b"}], "y"),
    "patterns in a folder": (tables, [SMALL, {"config_name": "y", "data_dir": "b", "data_files": "deep/*"}], "y"),
    "names decide": (
        lambda folder: [table(folder / f"data/{name}-00000-of-00001.parquet", 1, 2) for name in ("train", "test")],
        [{"config_name": "x"}],
        None,
    ),
    "metadata": (
        lambda folder: [folder_of_images(folder / name, *numbers) for name, numbers in (("a", [1, 2]), ("b", [3]))],
        [
            {"config_name": "x", "default": True, "drop_labels": True, "data_files": [split("train", "b/**")]},
            {"config_name": "y", "data_files": [split("train", "a/**")]},
        ],
        None,
    ),
    "metadata in a folder called test": (
        lambda folder: [folder_of_images(folder / name, *numbers) for name, numbers in (("test", [1, 2]), ("b", [3]))],
        [{"config_name": "x", "data_files": [split("train", "test/**"), split("test", "b/**")]}],
        None,
    ),
    "more tables than other files": (
        lambda folder: (tables(folder), (folder / "b/notes.csv").write_text("a,b\n1,2\n")),
        [{"config_name": "x", "data_files": "b/*.parquet"}],
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_trains_what_load_dataset_gives(case, tmp_path):
    import datasets

    build, configs, name = CASES[case]
    folder = tmp_path / "clone"
    build(folder)
    readme(folder, configs)
    loaded = datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path / "hf"))
    expected = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    options = {} if name is None else {"config_name": name}
    ours = opened(tmp_path, name=folder, **options)
    assert [ours.captions(row)[0] for row in range(len(ours))] == list(expected["text"])
    expected = expected.cast_column("image", datasets.Image(decode=False))
    assert [ours.image_bytes(row) for row in range(len(ours))] == [
        cell["bytes"] or Path(cell["path"]).read_bytes() for cell in expected["image"]
    ]


def test_other_configurations_are_counted(tmp_path):
    tables(tmp_path / "clone")
    readme(tmp_path / "clone", [SMALL, BIG])
    lines = []
    opened(tmp_path, name=tmp_path / "clone", report=lines.append)
    (line,) = lines
    assert "3 files belong to other configurations or splits in README.md" in line


def test_the_separate_file_wins(tmp_path):
    tables(tmp_path / "clone")
    readme(tmp_path / "clone", [SMALL])
    readme(tmp_path / "clone", [BIG], name=".huggingface.yaml")
    assert len(opened(tmp_path, name=tmp_path / "clone")) == 4


def test_images_with_captions_beside_them(tmp_path):
    """🤗 datasets knows no such captions; which images they are still follows what the README says."""
    for name in ("a/1", "a/2", "test/3"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / f"{name}.png").write_bytes(PICTURES[0])
        (tmp_path / "clone" / f"{name}.txt").write_text(name)
    readme(
        tmp_path / "clone", [{"config_name": "x", "data_files": "test/*.png"}, {"config_name": "y", "data_dir": "a"}]
    )
    ours = opened(tmp_path, name=tmp_path / "clone", config_name="x")
    assert [ours.captions(row) for row in range(len(ours))] == [("test/3",)]


def test_a_folder_of_the_configurations_name(tmp_path):
    tables(tmp_path / "clone")
    readme(tmp_path / "clone", [SMALL])
    assert len(opened(tmp_path, name=tmp_path / "clone", config_name="b")) == 5


def test_a_readme_about_files_that_are_gone(tmp_path):
    table(tmp_path / "clone/rows.parquet", 1, 2)
    readme(tmp_path / "clone", [{"config_name": "default", "data_files": "data/train-*"}])
    lines = []
    assert len(opened(tmp_path, name=tmp_path / "clone", report=lines.append)) == 2
    assert "lists files that do not exist" in lines[0]


REFUSED = {
    "no default": ([BIG | {"config_name": "a1"}, BIG], None, "set dataset.config_name to one of a1, big"),
    "two defaults": ([SMALL, BIG | {"default": True}], None, "several default configurations"),
    "no such one": ([SMALL, BIG], "huge", "no configuration of that name; its configurations: small, big"),
    "many": ([BIG | {"config_name": f"c{number}"} for number in range(900)], None, "c7 and 892 more"),
    "no such file": (
        [{"config_name": "x", "data_files": "c/gone.parquet"}],
        None,
        "'c/gone.parquet': there is no such file",
    ),
    "nothing that matches": ([SMALL | {"data_files": "c/*"}], "small", "match no images and no tables"),
    "an address": ([SMALL | {"data_files": "https://h/x.parquet"}], None, "leads out of"),
    "an archive": ([SMALL | {"data_files": "zip://*.png::a.zip"}], None, "leads out of"),
    "up": ([SMALL | {"data_files": "../*"}], None, "leads out of"),
    "up, as a folder": ([SMALL | {"data_dir": "../x"}], None, "data_dir"),
    "a pattern that is none": ([SMALL | {"data_files": "a/**x"}], None, "not supported"),
    "a key with a meaning": ([SMALL | {"filters": [["a", "=", 1]]}], None, "'small' has filters"),
    "no list": ({"small": {}}, None, "expected a list of configurations"),
    "no name": ([{"data_files": "a"}], None, "no config_name"),
    "a split twice": ([SMALL | {"data_files": [split("a", "x"), split("a", "y")]}], None, "a split not listed before"),
    "no paths": ([SMALL | {"data_files": 7}], None, "expected patterns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case, tmp_path):
    configs, name, message = REFUSED[case]
    tables(tmp_path / "clone")
    readme(tmp_path / "clone", configs)
    with pytest.raises(DatasetError) as caught:
        opened(tmp_path, name=tmp_path / "clone", **({} if name is None else {"config_name": name}))
    assert message in str(caught.value) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_yaml_that_is_broken(tmp_path):
    tables(tmp_path / "clone")
    (tmp_path / "clone/README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(DatasetError, match="YAML cannot be read"):
        opened(tmp_path, name=tmp_path / "clone")
    (tmp_path / "clone/README.md").write_text("---\ntitle: [\n---\n")
    assert len(opened(tmp_path, name=tmp_path / "clone")) == 7


# ------------------------------------------------------------------------------------------- folders of the Hub's cache


def snapshots(root, *commits, main=None):
    repository = root / "datasets--me--cats"
    for number, commit in enumerate(commits):
        folder_of_images(repository / "snapshots" / commit, *range(number + 1))
    if main is not None:
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(main)
    return repository


def test_the_snapshot_that_main_names(tmp_path):
    assert len(opened(tmp_path, name=snapshots(tmp_path, "aaa", "bbb", main="bbb"))) == 2


def test_the_only_snapshot(tmp_path):
    assert len(opened(tmp_path, name=snapshots(tmp_path, "aaa"))) == 1


@pytest.mark.parametrize("main", [None, "ccc", ""])
def test_snapshots_of_which_none_is_named(tmp_path, main):
    with pytest.raises(DatasetError, match=r"2 snapshots.*name the snapshot's folder \(aaa, bbb\)"):
        opened(tmp_path, name=snapshots(tmp_path, "aaa", "bbb", main=main))


# ---------------------------------------------------------------------------------------------------------- patterns

PARTS = st.one_of(st.just("**"), st.text("ab*?[]!-.", min_size=1, max_size=4).filter(lambda part: "**" not in part))
NAMES = st.lists(st.text("ab-.", min_size=1, max_size=3), min_size=1, max_size=4)


@given(st.lists(PARTS, min_size=1, max_size=4), NAMES)
@settings(max_examples=500, deadline=None)
def test_patterns_match_as_fsspecs_do(parts, names):
    from fsspec.utils import glob_translate

    expected = re.match(glob_translate("/".join(parts)), "/".join(names))
    assert glob_matches(parts, names) == (expected is not None)


def test_a_pattern_that_would_never_end(tmp_path):
    deep = "/".join(["a" * 60] * 12)
    parts = ["**", "*a*a*a*a*a*b"] * 20
    start = time.monotonic()
    assert not glob_matches(parts, deep.split("/"))
    assert time.monotonic() - start < 1


def test_yaml_that_would_fill_memory(tmp_path):
    tables(tmp_path / "clone")
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(30))
    (tmp_path / "clone/README.md").write_text(f"---\n{laughs}configs: *a30\n---\n")
    with pytest.raises(DatasetError, match="aliases"):
        opened(tmp_path, name=tmp_path / "clone")

"""A task's names as paths."""

import unicodedata
from pathlib import Path

import pytest

from engine.core.errors import DatasetError, ModelError, TemporaryError
from engine.task.paths import looking_up, nearest, resolve_paths
from tests.unit.task.test_task import MINIMAL, read


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("org/model", "org/model"),
        ("here", "{folder}/here"),
        ("here/file", "{folder}/here/file"),
        ("./missing", "{folder}/missing"),
        ("../missing", "{folder}/../missing"),
        (".", "{folder}"),
        ("/missing", "/missing"),
        ("~/missing", "{home}/missing"),
        ("~no-such-user/x", "{folder}/~no-such-user/x"),
        ("x" * 5000, "x" * 5000),
        ("https://h/model.safetensors", "https://h/model.safetensors"),
    ],
    ids=lambda name: name[:30],
)
def test_paths_start_from_the_tasks_folder(tmp_path, monkeypatch, name, resolved):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "folder"
    (folder / "here").mkdir(parents=True)
    (folder / "here" / "file").touch()
    monkeypatch.chdir(tmp_path)
    resolved = resolved.format(folder=folder, home=tmp_path / "home")
    task = read(MINIMAL | {"model": {"name": name}, "dataset": {"name": name}})
    task = resolve_paths(task, Path("folder"))
    assert (task.model.name, task.dataset.name, task.checkpoint) == (resolved, resolved, None)


def test_a_folder_that_may_not_be_looked_into_is_still_a_path(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(path)

    monkeypatch.setattr(Path, "exists", denied)
    assert resolve_paths(read(MINIMAL), tmp_path).model.name == str(tmp_path / "a/b")


def test_a_checkpoint_is_always_a_path(tmp_path):
    task = resolve_paths(read(MINIMAL | {"dataset": {"url": "http://h/x"}, "checkpoint": "out/checkpoint"}), tmp_path)
    assert task.checkpoint == str(tmp_path / "out/checkpoint")
    assert task.dataset.name is None


# --- names that lead nowhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_in_two_forms_are_one_name(tmp_path, there, written):
    (tmp_path / unicodedata.normalize(there, "café/été")).mkdir(parents=True)
    task = read(MINIMAL | {"dataset": {"name": unicodedata.normalize(written, "café/été")}})
    assert resolve_paths(task, tmp_path).dataset.name == str(tmp_path / unicodedata.normalize(there, "café/été"))


NO_HUB_ID = {
    ("dataset", "https://example.org/cats.zip"): "it is a URL: put it into dataset.url",
    ("dataset", "https://huggingface.co/datasets/me/cats"): "write the Hub ID alone, me/cats",
    ("model", "hf://me/model"): "write the Hub ID alone, me/model",
    ("dataset", "file:///data/cats"): "write the path alone",
    ("dataset", "s3://bucket/cats"): "a URL of another kind; expected a path or a Hub ID",
    ("dataset", "C:\\data\\cats"): "it is a Windows path",
    ("dataset", "D:/data/cats"): "it is a Windows path",
    ("model", "models\\sd15"): "it is a Windows path",
    ("model", "models/sd15.safetensors"): "there is no file {folder}/models/sd15.safetensors",
    ("model", "sd15.ckpt"): "there is no file {folder}/sd15.ckpt (is it mounted?)",
    ("dataset", "cats.zip"): "there is no file {folder}/cats.zip (is it mounted?)",
    (
        "dataset",
        "data/my images/",
    ): "there is no folder {folder}/data/my images (nor {folder}/data: is it mounted?)",
    ("dataset", "a/b/c"): "there is no folder {folder}/a/b/c (nor {folder}/a: is it mounted?)",
    ("dataset", "my imagse"): "there is no folder {folder}/my imagse (did you mean my images?)",
}


@pytest.mark.parametrize("case", NO_HUB_ID)
def test_what_no_hub_id_can_be_is_refused_at_once(tmp_path, case):
    what, name = case
    (tmp_path / "my images").mkdir()
    refused = ModelError if what == "model" else DatasetError
    with pytest.raises(refused) as caught, looking_up(name, tmp_path, what, f"{what}.name"):
        raise AssertionError("the Hub is not asked")
    assert str(caught.value).startswith(f"{what}.name is {name!r}: ")
    assert NO_HUB_ID[case].format(folder=tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["my-imagse", "My-Images", "team/cats"])
def test_the_folder_comes_first_and_the_hub_second(tmp_path, name):
    (tmp_path / "my-images").mkdir()
    failed = TemporaryError("the Hub could not be reached; try later")
    failed.hub_id = name
    with pytest.raises(TemporaryError) as caught, looking_up(name, tmp_path, "dataset", "dataset.name"):
        raise failed
    meant = "is it mounted?" if "/" in name else "did you mean my-images?"
    assert str(caught.value).startswith(f"there is no folder {tmp_path}/{name} (")
    assert meant in str(caught.value) and str(caught.value).endswith(
        "on the Hub: the Hub could not be reached; try later"
    )


def test_what_is_wrong_with_something_found_is_not_about_folders(tmp_path):
    with pytest.raises(DatasetError, match=r"^no column 'text'$"), looking_up("me/cats", tmp_path, "dataset", "x"):
        raise DatasetError("no column 'text'")


def test_a_neighbour_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / ".image").mkdir()
    assert nearest(tmp_path / "image") == " (did you mean images?)"
    assert nearest(tmp_path / "image/1") == " (did you mean images?)"
    assert nearest(tmp_path / "x") == " (is it mounted?)"
    assert nearest(tmp_path / "x/y") == f" (nor {tmp_path}/x: is it mounted?)"

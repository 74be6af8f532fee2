"""A task's names as paths."""

from pathlib import Path

import pytest

from engine.paths import resolve_paths
from tests.unit.test_task import MINIMAL, read


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

"""What a result's folders hold beside what a re-run makes again; the rest of the verifier runs in tests/integration."""

import json
from types import SimpleNamespace

import pytest

from engine.differences import first_more
from engine.quoting import listing
from engine.settings import read_flags, read_settings
from engine.verify import Result, _shortened

OWN = ["checkpoint/manifest.json", "checkpoint/history.jsonl", "validation/0.png", "validation/prompts.json"]


@pytest.fixture
def result(tmp_path):
    for name in OWN:
        write(tmp_path, name)
    manifest = {"files": {"history.jsonl": "0"}}
    return Result(tmp_path / "checkpoint", tmp_path / "validation", SimpleNamespace(manifest=manifest))


def write(root, name):
    (root / name).parent.mkdir(exist_ok=True, parents=True)
    (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    "name",
    [
        "validation/9.png",
        "validation/9.JPG",
        "validation/step-000002/0.png",
        "checkpoint/FINISH",
        "checkpoint/steps/000002.safetensors",
    ],
)
def test_a_file_that_readers_take_for_the_results_is_a_difference(result, tmp_path, name):
    write(tmp_path, name)
    taken, _ = result.names()
    assert first_more(taken, OWN) == f"'{name}' is in the result alone"


def test_links_count_by_their_names(result, tmp_path):
    (tmp_path / "validation" / "9.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "validation" / "more").symlink_to(tmp_path / "checkpoint")
    taken, others = result.names()
    assert taken - set(OWN) == {"validation/9.png"} and others - set(OWN) == {"validation/more"}


def test_an_end_that_is_a_folder_is_one_to_clients(result, tmp_path):
    (tmp_path / "checkpoint" / "FINISH").mkdir()
    assert "checkpoint/FINISH" in result.names()[0]


def test_other_files_are_told_not_judged(result, tmp_path):
    for name in ("checkpoint/.DS_Store", "validation/._0.png", "validation/notes.txt", "validation/a/thumbs"):
        write(tmp_path, name)
    taken, others = result.names()
    assert first_more(taken, OWN) is None
    told = "checkpoint/.DS_Store, validation/._0.png, validation/a/thumbs and 1 more"
    assert listing(sorted(others - set(OWN))) == told


def test_of_a_checkpoint_alone_no_pictures_are_looked_for(result, tmp_path):
    alone = Result(result.checkpoint_folder, None, result.checkpoint)
    write(tmp_path, "validation/9.png")
    assert alone.names() == ({"checkpoint/history.jsonl"}, set())


def test_the_first_steps_alone_are_a_task_with_the_paths_of_its_own_folder(tmp_path):
    """It lies elsewhere, where the names of the task's folder mean nothing."""
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    for name in ("home/images", "home/held", "scratch"):
        (tmp_path / name).mkdir(parents=True)
    task = {
        "model": {"name": "org/model"},
        "dataset": {"name": "images"},
        "validation": {"dataset": {"name": "./held"}, "prompts": ["a"], "num_images": 3},
        "train_args": {"num_train_steps": 9, "max_train_steps": 9},
        "checkpoint": "parent/checkpoint",
    }
    (home / "task.json").write_text(json.dumps(task))
    settings = read_settings(read_flags(["--task", str(home / "task.json"), "--device", "cpu"]), {})
    found = json.loads(_shortened(settings, 2, scratch / "new").read_text())
    assert found == {
        "model": {"name": "org/model"},
        "dataset": {"name": str(home / "images")},
        "validation": {"dataset": {"name": str(home / "held")}, "num_images": 1},
        "train_args": {"num_train_steps": 2, "max_train_steps": 9},
        "checkpoint": str(home / "parent/checkpoint"),
    }

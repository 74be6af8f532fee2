"""What a result's folders hold beside what a re-run makes again; the rest of the verifier runs in tests/integration."""

import json
import sys
from types import SimpleNamespace

import pytest

from engine.commands.diffs.result_diff import first_more
from engine.commands.verify import main as verify
from engine.commands.verify import rerun
from engine.commands.verify.result import Result
from engine.core.errors import TaskError
from engine.core.messages import listing
from engine.task.settings import read_flags, read_settings

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
        # Diffusers lists a folder with hidden names and takes the first that ends so, subfolders by their names.
        "checkpoint/.1-pytorch_lora_weights.safetensors",
        "checkpoint/.2-PYTORCH.bin",
        "checkpoint/adapter_config.json",
        "checkpoint/unet/diffusion_pytorch_model.safetensors",
        "checkpoint/notes.txt",
        "checkpoint/.hidden",
        "validation/.7.png",
        "validation/7.mp4",
    ],
)
def test_a_file_that_readers_take_for_the_results_is_a_difference(result, tmp_path, name):
    write(tmp_path, name)
    taken, _ = result.names()
    assert first_more(taken, OWN) == f"'{name}' is only in the result"


@pytest.mark.parametrize("name", ["checkpoint/empty", "checkpoint/.unet", "checkpoint/x.safetensors"])
def test_so_is_a_folder_of_the_checkpoint(result, tmp_path, name):
    (tmp_path / name).mkdir()
    assert first_more(result.names()[0], OWN) == f"'{name}' is only in the result"


def test_the_folder_of_listed_files_is_none(result, tmp_path):
    write(tmp_path, "checkpoint/steps/000002.safetensors")
    result.checkpoint.manifest["files"]["steps/000002.safetensors"] = "0"
    assert first_more(result.names()[0], [*OWN, "checkpoint/steps/000002.safetensors"]) is None


def test_links_count_by_their_names(result, tmp_path):
    (tmp_path / "validation" / "9.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "validation" / "more").symlink_to(tmp_path / "checkpoint")
    taken, others = result.names()
    assert taken - set(OWN) == {"validation/9.png"} and others - set(OWN) == {"validation/more"}


def test_an_end_that_is_a_folder_is_one_to_clients(result, tmp_path):
    (tmp_path / "checkpoint" / "FINISH").mkdir()
    assert "checkpoint/FINISH" in result.names()[0]


def test_other_files_are_told_not_judged(result, tmp_path):
    for name in ("checkpoint/.DS_Store", "validation/.DS_Store", "validation/notes.txt", "validation/a/thumbs"):
        write(tmp_path, name)
    taken, others = result.names()
    assert first_more(taken, OWN) is None
    told = "checkpoint/.DS_Store, validation/.DS_Store, validation/a/thumbs and 1 more"
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
    found = json.loads(rerun._rewritten(settings, scratch / "new", 2).read_text())
    assert found == {
        "model": {"name": "org/model"},
        "dataset": {"name": str(home / "images")},
        "validation": {"dataset": {"name": str(home / "held")}, "num_images": 1},
        "train_args": {"num_train_steps": 2, "max_train_steps": 9},
        "checkpoint": str(home / "parent/checkpoint"),
    }


def test_a_task_that_was_moved_keeps_the_paths_of_the_folder_that_it_was_in(tmp_path):
    """As a worker moves it to `done/`."""
    (tmp_path / "tasks" / "images").mkdir(parents=True)
    (tmp_path / "tasks" / "done").mkdir()
    moved = tmp_path / "tasks" / "done" / "task.json"
    (tmp_path / "tasks" / "prompts.csv").write_text("prompt\na cat\n")
    task = {
        "model": {"name": "org/model"},
        "dataset": {"name": "images"},
        "validation": {"prompts_file": "prompts.csv"},
        "train_args": {},
    }
    moved.write_text(json.dumps(task))

    def settings(folder):
        words = ["out", "--task", str(moved), "--device", "cpu", "--task-folder", str(folder)]
        return rerun.settings_of(verify._parser().parse_args(words), tmp_path / "out", {})

    found = json.loads(rerun._rewritten(settings(tmp_path / "tasks"), tmp_path / "new", None).read_text())
    assert found == task | {
        "dataset": {"name": str(tmp_path / "tasks" / "images")},
        "validation": {"prompts_file": str(tmp_path / "tasks" / "prompts.csv")},
    }
    with pytest.raises(TaskError, match=r"--task-folder .* no such folder"):
        settings(tmp_path / "task")


class TestRerunsLines:
    """What the re-run says of its own temporary folder is gone when anybody reads it."""

    def test_lines_that_name_it_are_left_out(self, capsys, tmp_path, monkeypatch):
        out = tmp_path / "verify-x" / "out"
        job = tmp_path / "job.py"
        job.write_text(f"import sys\nsys.stderr.write('epoch\\nlook at {out}/report.html\\ndone\\n')\n")
        assert rerun._run_quietly([sys.executable, str(job)], out, environment={}) == 0
        assert capsys.readouterr().err == "epoch\ndone\n"

    def test_its_code_passes(self, tmp_path):
        command = [sys.executable, "-c", "import sys; sys.exit(3 + len(sys.stdin.read()))"]
        assert rerun._run_quietly(command, tmp_path, environment={}) == 3


def test_a_rerun_is_pushed_nowhere(tmp_path, monkeypatch):
    """Whatever the operator has set for the jobs of this machine."""
    given = {}
    monkeypatch.setattr(verify, "verify", lambda flags, environment: given.update(environment) or ([], 0))
    operators = {"PUSH_TO_HUB": "someone/lora", "PUSH_EVERY_RESULT": "1", "HF_TOKEN": "hf_x"}
    assert verify.main([str(tmp_path), "--task", "task.json"], operators) == 0
    assert read_settings(read_flags([]), {"TASK_JSON": "{}", **given}).push is None

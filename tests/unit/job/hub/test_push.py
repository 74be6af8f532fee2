"""Which results are pushed, which of their files, and what a failure does."""

import json
from types import SimpleNamespace

import pytest

from engine.core.errors import OutputError, TemporaryError
from engine.core.process.signals import Stop
from engine.job.hub import push
from engine.results.outcome import Outcome
from engine.results.output.contents import OutputContents
from engine.task.push import Push
from engine.training.methods.registry import METHODS

LORA = ("pytorch_lora_weights.safetensors", "lora_webui.safetensors", "steps/000100.safetensors")
FULL = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors")
REST = ("README.md", "state.safetensors", "state.json", "history.jsonl", "without-0.png", "global_step.txt")


class Output(OutputContents):
    """An output folder that notes what is written to `result.json`."""

    def __init__(self, root):
        super().__init__(root)
        self.written = []

    def write_result(self, result):
        self.written.append(result)


def published(root, names=LORA):
    files = {f"checkpoint/{name}": b"" for name in (*names, *REST)}
    files["checkpoint/manifest.json"] = json.dumps(
        {"files": dict.fromkeys((*names, *REST), ""), "global_step": 9}
    ).encode()
    files |= {name: b"" for name in ("validation/0.png", "validation/step-000100/0.png", "report.html", "result.json")}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return Output(root)


@pytest.mark.parametrize("method, names", [("lora", LORA), ("full", FULL)])
def test_weights_card_images_and_report_but_no_state(tmp_path, method, names):
    found = push.files_to_push(published(tmp_path, names), [*names, *REST], METHODS[method])
    images = {"validation/0.png", "validation/step-000100/0.png"}
    assert found.keys() == {*names, "README.md", "manifest.json", *images, "report.html"}
    assert all(path.is_file() for path in found.values())


def run(output, monkeypatch, *, every=False, error=None, is_new=True):
    """The result is pushed, with this outcome: the names of what was pushed, or None."""
    pushed = []

    def pushing(repo, files, **options):
        assert options["message"] == "Step 9"
        pushed.append(sorted(files))
        if error:
            raise error
        return "address"

    monkeypatch.setattr(push.hub_push, "push", pushing)
    context = SimpleNamespace(
        settings=SimpleNamespace(push=Push(repo="a/b", token="t", every_result=every)),
        output=output,
        outcome=Outcome(),
        stop=Stop(),
        job=SimpleNamespace(method=METHODS["lora"]),
    )
    push.push_result(context, is_new=is_new)
    return pushed


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("every", [True, False])
def test_an_unfinished_training_is_pushed_by_option_only(tmp_path, monkeypatch, finished, every):
    output = published(tmp_path)
    if finished:
        (output.checkpoint / "FINISH").touch()
    assert bool(run(output, monkeypatch, every=every)) == (finished or every)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_failure_is_a_warning(tmp_path, monkeypatch, capsys, is_new):
    """In `result.json` only if this run has made the result: a finished job changes nothing."""
    output = published(tmp_path)
    run(output, monkeypatch, every=True, error=TemporaryError("pushing to a/b: trouble"), is_new=is_new)
    assert "note: pushing to a/b: trouble; " in capsys.readouterr().err
    assert [any("trouble" in line for line in result["warnings"]) for result in output.written] == [True] * is_new


def test_a_disk_that_is_full_by_now_does_not_fail_the_job(tmp_path, monkeypatch):
    output = published(tmp_path)

    def full(result):
        raise OutputError("the disk is full")

    monkeypatch.setattr(output, "write_result", full)
    assert run(output, monkeypatch, every=True)

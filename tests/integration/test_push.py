"""Results pushed to a Hub on this machine, by the whole program and the real client."""

import signal

import pytest

from tests.support.fake_hub_uploads import HANG, TOKEN, taking_uploads
from tests.support.harness import (
    PATIENCE,
    assert_same,
    changed,
    folder_bytes,
    read_json,
    run_job,
    start_job,
    succeed,
)

REPO = "someone/my-lora"
PUSHED = {"README.md", "manifest.json", "pytorch_lora_weights.safetensors", "lora_webui.safetensors"}


@pytest.fixture
def hub():
    with taking_uploads() as found:
        yield found


def pushing(hub, **more):
    return {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "PUSH_TO_HUB": REPO, **more}


def test_a_push_that_fails_is_a_warning_and_the_same_command_makes_up_for_it(short_task, hub, tmp_path):
    """It changes no bit of the two folders; what is pushed are these files, without the training's state."""
    task = changed(short_task, {"checkpoint_every_n_steps": 1, "validation.every_n_steps": 1})
    without = succeed(task, tmp_path / "without")
    hub.trouble = lambda request: 403
    first = succeed(task, tmp_path / "out", env=pushing(hub))
    assert_same(first.folders(), without.folders())
    (warning,) = [line for line in first.result["warnings"] if REPO in line]
    assert "HF_TOKEN may not write there" in warning and first.result["code"] == 0
    assert TOKEN not in first.stderr and first.result["seconds"]["push"] > 0
    assert not hub.repositories

    hub.trouble = lambda request: None
    before = folder_bytes(first.out)
    again = succeed(task, first.out, env=pushing(hub))
    repository = hub.repositories[REPO]
    assert repository.commits == ["Step 2"]
    assert "nothing to do" in again.stderr and f"pushed: {hub.commit_address(REPO)}" in again.stderr
    pictures = {f"validation/{name}" for name in folder_bytes(first.out / "validation")}
    steps = {"steps/000001.safetensors", "steps/000001_webui.safetensors"}
    assert repository.files.keys() == PUSHED | steps | pictures | {"report.html"} and repository.private
    page = repository.files.pop("report.html").decode()
    assert "Training images" not in page and "Training images" in (first.out / "report.html").read_text()
    for name, data in repository.files.items():
        folder = first.out if name.startswith("validation/") else first.out / "checkpoint"
        assert (folder / name).read_bytes() == data
    assert folder_bytes(first.out) == before


@pytest.mark.slow
def test_the_results_of_a_chain(short_task, hub, tmp_path):
    """Those of unfinished tasks are pushed by option only."""
    half = changed(short_task, {"train_args.num_train_steps": 1})
    first = succeed(half, tmp_path / "first", env=pushing(hub))
    assert not hub.requests and not first.result["finished"]
    assert "the result of the finished training is pushed to someone/my-lora" in first.stderr
    succeed(half, tmp_path / "again", "--push-every-result", env=pushing(hub))
    assert hub.repositories[REPO].commits == ["Step 1"]
    succeed(half, tmp_path / "second", "--checkpoint", tmp_path / "first/checkpoint", env=pushing(hub))
    assert hub.repositories[REPO].commits == ["Step 1", "Step 2"]
    card = (tmp_path / "second/checkpoint/README.md").read_bytes()
    assert hub.repositories[REPO].files["README.md"] == card


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_push(short_task, hub, tmp_path):
    hub.trouble = lambda request: HANG if request.startswith("PUT") else None
    running = start_job(short_task, tmp_path / "out", env=pushing(hub))
    running.until(lambda: any(one.startswith("PUT") for one in hub.requests), "upload")
    running.signal(signal.SIGKILL)
    assert running.process.wait(PATIENCE) == -signal.SIGKILL
    result = read_json(tmp_path / "out" / "result.json")
    assert result["status"] == "done" and not hub.repositories[REPO].commits

    hub.trouble = lambda request: None
    succeed(short_task, tmp_path / "out", env=pushing(hub))
    assert hub.repositories[REPO].commits == ["Step 2"] and hub.repositories[REPO].files.keys() >= PUSHED


@pytest.mark.slow
def test_a_signal_ends_a_push_that_hangs_but_the_job_is_done(short_task, hub, tmp_path):
    hub.trouble = lambda request: HANG
    running = start_job(short_task, tmp_path / "out", env=pushing(hub))
    running.until(lambda: hub.requests, "request")
    running.signal(signal.SIGTERM)
    finished = running.finish()
    assert finished.code == 0 and any("the job was stopped" in line for line in finished.result["warnings"])


def test_a_missing_token_is_found_before_training(short_task, hub, tmp_path):
    refused = run_job(short_task, tmp_path / "out", env=pushing(hub, HF_TOKEN=""))
    assert refused.code == 2 and "set HF_TOKEN" in refused.error and not hub.requests
    assert read_json(tmp_path / "out" / "result.json")["kind"] == "task"

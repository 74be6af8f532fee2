"""The compose file's services for a task of one's own, and a chain that is stopped on its way."""

import json
import os
import subprocess
import uuid

import pytest

from tests.container.conftest import TASK
from tests.support.containers import (
    CALLER,
    IMAGE,
    PATIENCE,
    ROOT,
    Finished,
    docker,
    engine_knows_gpus,
    give,
    owners,
    running,
    wait_for_step,
)

pytestmark = pytest.mark.container

SLICES = {"num_train_steps": 20, "max_train_steps": 40}


@pytest.fixture
def compose(tmp_path):
    """Run a compose command as in a checkout of the project, but with the folders elsewhere."""
    project = f"sd-lora-task-test-{uuid.uuid4().hex[:8]}"
    # The engine of CI has no bridge to put a network on, others have no GPUs.
    here = "{network_mode: none}" if engine_knows_gpus() else "{network_mode: none, deploy: !reset null}"
    (tmp_path / "offline.yml").write_text(f"services: {{chain: {here}, train: {here}}}")
    files = ["-f", ROOT / "docker-compose.yml", "-f", tmp_path / "offline.yml"]
    environment = {**os.environ, "IMAGE": IMAGE, "DEVICE": "cpu"}

    def run(*args):
        line = ["docker", "compose", "--project-directory", tmp_path, "-p", project, *files, *args]
        return subprocess.run(
            [*map(str, line)], env=environment, capture_output=True, text=True, check=False, timeout=3 * PATIENCE
        )

    yield run
    run("down", "--volumes", "--timeout", "0")


def test_up_starts_nothing(compose):
    """Two jobs at once would share the GPUs and write into one folder."""
    assert compose("config", "--services").stdout.split() == []
    done = compose("up")
    assert done.returncode != 0 and "no service selected" in done.stderr
    known = json.loads(compose("--profile", "*", "config", "--format", "json").stdout)["services"]
    assert set(known) == {"chain", "demo", "train"}
    assert {service["restart"] for service in known.values()} == {"no"}


def test_a_chain_that_is_stopped_and_goes_on(compose, tmp_path, made_by_docker):
    task = tmp_path / "task"
    task.mkdir()
    chain = TASK | {"train_args": TASK["train_args"] | SLICES}
    (task / "task.json").write_text(json.dumps(chain))
    give(task, CALLER)
    out = tmp_path / "out"
    out.mkdir()
    give(out, CALLER)
    command = ["chain", "--task", "/task/task.json", "--output", "/out"]
    with running(out, *command, task=task, options=["-e", "SAVE_SECONDS=0"]) as (name, process):
        wait_for_step(out / "000", 3, process)
        docker("stop", "-t", "120", name)
        assert process.wait() == 143
    stopped = json.loads((out / "000/result.json").read_text())
    assert stopped["status"] == "interrupted" and stopped["global_step"] >= 3

    done = compose("run", "--rm", "chain")
    assert done.returncode == 0, done.stderr
    assert Finished(0, "", out / "001").weights() == made_by_docker.weights()
    assert owners(out) == {CALLER}

    again = compose("run", "--rm", "train", "--plan")
    assert again.returncode == 0 and "steps 0 to 20 of 40" in again.stdout

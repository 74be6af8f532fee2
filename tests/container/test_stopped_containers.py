"""Containers that are stopped or killed in mid-training: the same command goes on, and ends with the same bytes."""

import time

import pytest

from tests.support.containers import CALLER, docker, owners, running, succeed, wait_for_step

pytestmark = pytest.mark.container

SAVE_OFTEN = ["-e", "SAVE_SECONDS=0"]
FILL_MEMORY = """
for process in /proc/[0-9]*; do  # or the job would be done before the memory is full
  [ "$(cat "$process/comm")" = python ] && kill -STOP "${process#/proc/}"
done
dd if=/dev/zero of=/dev/shm/filler bs=1M count=3072
"""


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_docker_stop_right_after_the_start(out, task_folder, seconds):
    """Before anything that could handle the signal has started: it is kept, not dropped as process 1's signals are."""
    with running(out, task=task_folder) as (name, process):
        while not docker("ps", "-q", "--filter", f"name={name}").stdout:
            time.sleep(0.02)
        time.sleep(seconds)
        docker("stop", "-t", "120", name)
        assert process.wait(timeout=60) == 143


def test_docker_stop_saves_the_progress(out, task_folder, made_by_docker):
    with running(out, task=task_folder, options=SAVE_OFTEN) as (name, process):
        wait_for_step(out, 3, process)
        docker("stop", "-t", "120", name)
        assert process.wait() == 143, process.stderr.read()
    assert not (out / "checkpoint").exists()

    resumed = succeed(out, task=task_folder)
    assert resumed.result["resumed_from_step"] >= 3
    assert resumed.folders() == made_by_docker.folders()
    assert owners(out) == {CALLER}


def test_running_out_of_memory_kills_and_the_same_command_goes_on(out, task_folder, made_by_docker):
    """The kernel kills the largest process of the container, as soon as a file in its shared memory fills the limit."""
    limits = ["--memory", "3g", "--memory-swap", "3g", "--shm-size", "3g"]
    with running(out, task=task_folder, options=[*SAVE_OFTEN, *limits]) as (name, process):
        wait_for_step(out, 3, process)
        docker("exec", name, "sh", "-c", FILL_MEMORY, check=False)
        assert process.wait() == 137, process.stderr.read()

    resumed = succeed(out, task=task_folder)
    assert resumed.result["resumed_from_step"] > 0  # which save was the last depends on how long one takes
    assert resumed.folders() == made_by_docker.folders()

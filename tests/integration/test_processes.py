"""Several processes: the bytes of one, whoever starts them, and an end that is everybody's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.harness import (
    PATIENCE,
    SOON,
    assert_same,
    changed,
    folder_bytes,
    read_json,
    run_chain,
    run_job,
    start_job,
    succeed,
)

TOGETHER = {"PROCESSES": "2"}
LONG = {"train_args.num_train_steps": 4000, "train_args.max_train_steps": 4000, "train_args.batch_size": 1}


def torchrun(processes):
    """The prefix of a command that starts it so many times."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return [*launcher, "--nproc-per-node", str(processes)]


def sharing(task, accumulation):
    return changed(task, {"train_args.gradient_accumulation_steps": accumulation})


@pytest.fixture(scope="module")
def alone(task, tmp_path_factory):
    """1 x 4."""
    return succeed(sharing(task, 4), tmp_path_factory.mktemp("alone") / "out")


class TestBytes:
    def test_two_by_two(self, task, alone, tmp_path):
        finished = succeed(sharing(task, 2), tmp_path / "out", prefix=torchrun(2))
        assert_same(finished.weights(), alone.weights())
        history = "checkpoint/history.jsonl"
        assert finished.folders()[history] == alone.folders()[history]

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_four_by_one(self, task, tmp_path, precision):
        task = changed(task, {"mixed_precision": precision})
        one = succeed(sharing(task, 4), tmp_path / "one")
        four = succeed(sharing(task, 1), tmp_path / "four", prefix=torchrun(4))
        assert_same(four.weights(), one.weights())

    @pytest.mark.slow
    @pytest.mark.parametrize("base, with_text_encoder", [("sd", True), ("xl", False), ("xl", True)])
    def test_two_by_two_of_other_trainings(self, task, xl_model, tmp_path, base, with_text_encoder):
        steps = {"train_args.num_train_steps": 4, "train_args.max_train_steps": 4}
        own = changed(task, {**steps, "train_args.train_text_encoder": with_text_encoder, "lora.dropout": 0.1})
        own = changed(own, {"model.name": str(xl_model)} if base == "xl" else {})
        one = succeed(sharing(own, 4), tmp_path / "one")
        two = succeed(sharing(own, 2), tmp_path / "two", prefix=torchrun(2))
        assert_same(two.weights(), one.weights())

    @pytest.mark.slow
    @pytest.mark.parametrize("training_type", ["lora", "lokr", "full"])
    @pytest.mark.parametrize("optimizer", ["adamw_8bit", "adafactor", "lion", "prodigy"])
    def test_a_chain_of_each_optimizer_in_several_numbers_of_processes(self, task, tmp_path, optimizer, training_type):
        """1 + 3 + 2 steps in two processes, in one and in four, and 6 at once. Some tensors have codes of 8 bits."""
        rate = {"prodigy": 100.0}.get(optimizer, 1e-4)
        options = {"train_args.optimizer": optimizer, "train_args.learning_rate": rate, "train_args.ema_decay": 0.9}
        options |= {"training_type": training_type, "mixed_precision": "bf16", "train_args.max_train_steps": 6}
        own, parent = changed(task, options), None
        for part, (processes, steps) in enumerate([(2, 1), (1, 3), (4, 2)]):
            link = changed(sharing(own, 4 // processes), {"train_args.num_train_steps": steps, "checkpoint": parent})
            done = succeed(link, tmp_path / f"{part}", prefix=torchrun(processes) if processes > 1 else ())
            parent = str(tmp_path / f"{part}" / "checkpoint")
        whole = succeed(changed(sharing(own, 4), {"train_args.num_train_steps": 6}), tmp_path / "whole")
        weights = [
            {name: data for name, data in folder_bytes(one.out / "checkpoint").items() if name.endswith(".safetensors")}
            for one in (done, whole)
        ]
        assert len(weights[0]) >= 2
        if optimizer == "adamw_8bit" and training_type == "full":
            assert b'"U8"' in weights[0]["state.safetensors"]
        assert_same(*weights)

    @pytest.mark.slow
    def test_processes_that_it_starts_itself_leave_no_trace(self, task, alone, tmp_path):
        """Both folders, manifest and all: what a machine has is not part of a result."""
        finished = succeed(sharing(task, 4), tmp_path / "out", env={"PROCESSES": "3"})
        assert "starting 2 processes" in finished.stderr  # 3 does not divide 4
        assert_same(finished.folders(), alone.folders())

    @pytest.mark.slow
    def test_a_chain_may_change_their_number(self, task, alone, tmp_path):
        """Started by torchrun, by itself, and alone, with a cut in mid-epoch, warm and cold caches."""
        numbers = ["2", "1", "4"]
        chain = run_chain(
            sharing(task, 4),
            tmp_path,
            [3, 3, 4],
            each=lambda index: {"PROCESSES": numbers[index], "CACHE_DIR": str(tmp_path / f"cache-{index % 2}")},
        )
        assert_same(chain[-1].weights(), alone.weights())

    @pytest.mark.slow
    def test_unreadable_images_and_workers(self, task, alone, tmp_path, dataset):
        """All processes put the same images in the place of those that one of them cannot read."""
        damaged = tmp_path / "dataset"
        damaged.mkdir()
        for index, path in enumerate(sorted(dataset.iterdir())):
            data = path.read_bytes()
            (damaged / path.name).write_bytes(data[: len(data) // 2] if index in (1, 4) else data)
        own = changed(sharing(task, 4), {"dataset.name": str(damaged), "dataloader_num_workers": 1})
        one = succeed(own, tmp_path / "one")
        two = succeed(own, tmp_path / "two", env={**TOGETHER, "CACHE_DIR": str(tmp_path / "cache")})
        assert_same(two.folders(), one.folders())
        assert two.result["skipped_images"] == one.result["skipped_images"] == 2
        assert two.stderr.count("skipping image") == 2


WHOLE = {
    **{"training_type": "full", "mixed_precision": "bf16", "train_args.ema_decay": 0.9},
    **{f"train_args.{key}": 6 for key in ("num_train_steps", "max_train_steps")},
    **{"validation.dataset": {"fraction": 0.25}, "validation.every_n_steps": 3, "checkpoint_every_n_steps": 3},
    **{"train_args.batch_size": 1, "validation.num_inference_steps": 2},
}
"""The changes for a training of a whole model, with everything in it that processes do together."""
NOTHING_BETWEEN = {
    "validation.dataset": None,
    "validation.every_n_steps": None,
    "checkpoint_every_n_steps": None,
}


class TestWholeModels:
    """Each process owns some of the tensors: their sums, moments and averages."""

    def test_two_by_two(self, task, tmp_path):
        """Saved after each step: the first process writes what the other one has."""
        own = sharing(changed(task, WHOLE), 4)
        one = succeed(own, tmp_path / "one")
        two = succeed(own, tmp_path / "two", env={**TOGETHER, "SAVE_SECONDS": "0"})
        assert_same(two.folders(), one.folders())

    @pytest.mark.slow
    @pytest.mark.parametrize("base, precision", [("sd", "no"), ("xl", "no"), ("xl", "bf16")])
    def test_a_chain_may_change_their_number(self, task, xl_model, tmp_path, base, precision):
        own = sharing(changed(task, {**WHOLE, "mixed_precision": precision}), 4)
        own = changed(own, {"train_args.train_text_encoder": True, "validation.dataset": None})
        own = changed(own, {"model.name": str(xl_model)} if base == "xl" else {})
        one = succeed(own, tmp_path / "one")
        numbers = ["2", "1", "4"]
        chain = run_chain(own, tmp_path, [1, 3, 2], each=lambda index: {"PROCESSES": numbers[index]})
        found, expected = (
            {
                name: data
                for name, data in finished.folders().items()
                if name.endswith((".safetensors", ".png", "history.jsonl")) and "/step-" not in name
            }
            for finished in (chain[-1], one)
        )
        assert "checkpoint/state.safetensors" in found and "checkpoint/steps/000003/unet/" in "".join(found)
        assert_same(found, expected)

    @pytest.mark.slow
    def test_sigterm_saves_a_step_that_all_have_made(self, task, tmp_path):
        """The first process receives what the others own, and writes it, before all of them end."""
        steps = {f"train_args.{key}": 60 for key in ("num_train_steps", "max_train_steps")}
        own = sharing(changed(task, {**WHOLE, **steps, **NOTHING_BETWEEN}), 2)
        job = start_job(own, tmp_path / "out", env={**TOGETHER, "SAVE_SECONDS": "1000"})
        job.until_step(5)
        job.signal(signal.SIGTERM)
        stopped = job.finish()
        assert stopped.code == 143, stopped.stderr
        reached = stopped.result["global_step"]
        finished = succeed(own, tmp_path / "out")
        assert finished.result["resumed_from_step"] == reached >= 5
        assert_same(finished.folders(), succeed(own, tmp_path / "undisturbed").folders())

    @pytest.mark.slow
    def test_sigterm_while_the_first_process_draws_loses_no_step(self, task, tmp_path):
        """The state was saved together before."""
        images = {"validation.every_n_steps": 3, "validation.num_inference_steps": 100}
        own = sharing(changed(task, {**WHOLE, **NOTHING_BETWEEN, **images}), 2)
        job = start_job(own, tmp_path / "out", env={**TOGETHER, "SAVE_SECONDS": "1000"})
        job.until((job.out / ".job" / "progress").exists, "the state before the images of step 3")
        job.signal(signal.SIGTERM)
        assert job.finish().code == 143
        assert succeed(own, tmp_path / "out").result["resumed_from_step"] == 3

    @pytest.mark.slow
    def test_killed_again_and_again(self, task, tmp_path):
        """The others cannot save what the killed one has, so the job goes on from what was saved before."""
        steps = {"train_args.num_train_steps": 40, "train_args.max_train_steps": 40}
        own = sharing(changed(task, {**WHOLE, **steps}), 4)
        expected = succeed(own, tmp_path / "undisturbed")
        for count in range(6):
            env = {"PROCESSES": ("2", "4")[count % 2], "SAVE_SECONDS": "0"}
            job = start_job(own, tmp_path / "out", env=env)
            job.until(lambda job=job: len(ranks(job)) >= 2, "processes")
            time.sleep(5 + count)
            for pid in list(ranks(job).values())[count % 2 :][:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert job.finish().code in (0, 75, 143)  # 143: killed before they had met
        assert_same(succeed(own, tmp_path / "out").folders(), expected.folders())


def ranks(job):
    """The job's processes by rank, without their image workers."""
    found = {}
    for pid in job.family():
        with contextlib.suppress(OSError):
            command = Path("/proc", str(pid), "cmdline").read_bytes()
            variables = dict(
                entry.split(b"=", 1) for entry in Path("/proc", str(pid), "environ").read_bytes().split(b"\0") if entry
            )
            if b"RANK" in variables and b"entrypoint.py" in command and b"spawn_main" not in command:
                found[int(variables[b"RANK"])] = pid
    return found


def training(task, out, **env):
    """A job of two processes in the midst of its training."""
    job = start_job(changed(sharing(task, 2), LONG), out, env={**TOGETHER, **env})
    job.until_step(3)
    return job, ranks(job)


def assert_ended(job, started):
    assert time.monotonic() - started < SOON
    job.assert_gone()


class TestEndings:
    @pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
    def test_a_killed_process_ends_the_job(self, task, tmp_path, victim):
        job, pids = training(task, tmp_path / "out")
        started = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)
        finished = job.finish()
        assert_ended(job, started)
        assert finished.code == 75, finished.stderr
        assert "killed" in finished.error
        assert {key: finished.result[key] for key in ("status", "code", "kind")} == {
            "status": "failed",
            "code": 75,
            "kind": "temporary",
        }
        assert not (finished.out / "checkpoint").exists()

    def test_sigterm_saves_a_step_that_all_have_made(self, task, tmp_path):
        """To the launcher, as a container's end does; the same command goes on, alone, with the same bytes."""
        steps = {"train_args.num_train_steps": 40, "train_args.max_train_steps": 40}
        own = changed(sharing(task, 2), {**LONG, **steps})
        expected = succeed(own, tmp_path / "undisturbed")
        job = start_job(own, tmp_path / "out", env={**TOGETHER, "SAVE_SECONDS": "1000"})
        job.until_step(3)
        started = time.monotonic()
        job.signal(signal.SIGTERM)
        stopped = job.finish()
        assert_ended(job, started)
        assert stopped.code == 143, stopped.stderr
        assert stopped.result["status"] == "interrupted"
        reached = stopped.result["global_step"]
        finished = succeed(own, tmp_path / "out")
        assert finished.result["resumed_from_step"] == reached >= 3
        assert_same(finished.folders(), expected.folders())

    @pytest.mark.slow
    def test_sigterm_to_one_of_them_stops_all(self, task, tmp_path):
        job, pids = training(task, tmp_path / "out")
        os.kill(pids[1], signal.SIGTERM)
        stopped = job.finish()
        assert stopped.code == 143, stopped.stderr
        assert stopped.result["status"] == "interrupted"
        assert (stopped.out / ".job" / "progress").exists()

    @pytest.mark.slow
    def test_a_failure_has_its_own_code_and_is_told_once(self, task, tmp_path):
        own = changed(sharing(task, 2), {"train_args.learning_rate": 1e30, "train_args.lr_scheduler": {}})
        finished = run_job(own, tmp_path / "out", env=TOGETHER)
        assert finished.code == 8, finished.stderr
        assert finished.result["kind"] == "non-finite"

    @pytest.mark.slow
    def test_a_failure_of_one_is_the_reason_of_all(self, task, tmp_path):
        """The first process finds that the output folder is another job's; the others have nothing to do with it."""
        (tmp_path / "out" / "checkpoint").mkdir(parents=True)
        job = start_job(sharing(task, 1), tmp_path / "out", prefix=torchrun(2))
        assert job.process.wait(timeout=PATIENCE) == 1  # torchrun's own, whatever happened
        assert set(re.findall(r"exitcode +: (\d+)", job.stderr)) == {"7"}
        assert job.stderr.count("another job's result") == 1

    @pytest.mark.slow
    def test_processes_on_different_devices_are_no_job(self, task, tmp_path):
        """As many threads as its rank: the bits of the sum would be nobody's."""
        different = ["sh", "-c", 'CPU_THREADS=$((RANK + 1)) exec "$@"', "sh"]
        job = start_job(sharing(task, 1), tmp_path / "out", prefix=[*torchrun(2), *different])
        assert job.process.wait(timeout=PATIENCE) == 1
        assert set(re.findall(r"exitcode +: (\d+)", job.stderr)) == {"9"}
        assert job.stderr.count("error: the device is {") == 1

    @pytest.mark.slow
    def test_the_launcher_takes_its_processes_with_it(self, task, tmp_path):
        job, _ = training(task, tmp_path / "out", SAVE_SECONDS="0")
        job.process.kill()
        job.process.wait()
        started = time.monotonic()
        assert_ended(job, started)
        descriptor = os.open(tmp_path / "out" / ".lock", os.O_RDWR)
        while True:  # nobody holds the output folder: a dying process loses its memory before its files
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() - started < SOON
                time.sleep(0.02)
        os.close(descriptor)

    @pytest.mark.slow
    def test_killed_again_and_again(self, task, tmp_path):
        """Whichever process it hits, and however many the next start has: the same bytes in the end."""
        steps = {"train_args.num_train_steps": 40, "train_args.max_train_steps": 40}
        own = changed(sharing(task, 4), {**LONG, **steps, "dataloader_num_workers": 1})
        expected = succeed(own, tmp_path / "undisturbed")
        for count in range(4):
            env = {"PROCESSES": ("2", "4")[count % 2], "SAVE_SECONDS": "0"}
            job = start_job(own, tmp_path / "out", env=env)
            job.until(lambda job=job: len(ranks(job)) >= 2, "processes")
            time.sleep(4 + 2 * count)
            for pid in list(ranks(job).values())[count % 2 :][:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert job.finish().code in (0, 75, 143)  # 143: killed before they had met
        finished = succeed(own, tmp_path / "out")
        assert_same(finished.folders(), expected.folders())


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_gpus_give_the_bytes_of_one(task, tmp_path, precision, method):
    """Through NCCL; on a machine with two GPUs or more."""
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    own = changed(sharing(task, 4), {**(WHOLE if method == "full" else {}), "mixed_precision": precision})
    one = succeed(own, tmp_path / "one", env={"DEVICE": "cuda", "PROCESSES": "1"})
    two = succeed(own, tmp_path / "two", env={"DEVICE": "cuda"})
    assert "processes, which share the gradient accumulation steps" in two.stderr
    assert_same(two.folders(), one.folders())


@pytest.mark.gpu
def test_a_killed_process_on_gpus_ends_the_job(task, tmp_path):
    """NCCL would wait for it: within seconds all the same."""
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    job, pids = training(task, tmp_path / "out", DEVICE="cuda")
    started = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    assert job.finish().code == 75
    assert_ended(job, started)


def test_the_plan_counts_the_processes_of_torchrun(task, tmp_path):
    finished = succeed(sharing(task, 2), tmp_path / "out", "--plan", env={
        "RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400",
    })  # fmt: skip
    assert "3 x 6 micro-batches" in finished.stdout


@pytest.mark.slow
def test_a_task_from_standard_input_reaches_the_processes(task, tmp_path):
    own = sharing(task, 2)
    path = tmp_path / "task.json"
    path.write_text(json.dumps(own))
    prefix = ["sh", "-c", 'exec "$@" < "$0"', str(path)]
    finished = succeed(None, tmp_path / "out", "--task", "-", prefix=prefix, env=TOGETHER)
    assert "starting 2 processes" in finished.stderr
    assert read_json(finished.out / "result.json")["global_step"] == 10


READERS = {
    "dies": "2>&1 >/dev/null | head -c 1; exit ${PIPESTATUS[0]}",
    "is full": ">/dev/full 2>&1",
    "is closed": "<&- >&- 2>&-",
}


@pytest.mark.parametrize(
    "reader", ["dies", *(pytest.param(name, marks=pytest.mark.slow) for name in READERS if name != "dies")]
)
@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_nobody_reads_the_log(short_task, tmp_path, reader, processes):
    """The job goes on, and its code is right."""
    finished = run_job(
        short_task,
        tmp_path / "out",
        env={"PROCESSES": processes},
        prefix=["bash", "-c", f'"$@" {READERS[reader]}', "bash"],
    )
    assert finished.code == 0 and read_json(finished.out / "result.json")["status"] == "done"


@pytest.mark.slow
def test_image_workers_leave_signals_and_the_output_folder_to_the_job(task, tmp_path):
    job = start_job(changed(task, {**LONG, "dataloader_num_workers": 1}), tmp_path / "out")
    try:
        job.until(job.workers, "a worker")
        (worker, *_) = job.workers()
        job.until(lambda: _ignores(worker, signal.SIGTERM), "a worker that ignores SIGTERM")
        open_files = [str(path.readlink()) for path in Path("/proc", str(worker), "fd").iterdir()]
        assert not any(name.startswith(str(tmp_path / "out")) for name in open_files)
        os.kill(worker, signal.SIGTERM)
        job.until_step(1)
    finally:
        job.process.kill()
        job.process.wait()
    descriptor = os.open(tmp_path / "out" / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def _ignores(pid, signum):
    status = Path("/proc", str(pid), "status").read_text()
    mask = int(re.search(r"SigIgn:\s*([0-9a-f]+)", status)[1], 16)
    return bool(mask >> (signum - 1) & 1)

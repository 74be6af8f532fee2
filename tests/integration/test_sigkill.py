"""Killed at any moment and started again by the same command, a job ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.support.harness import (
    POLL,
    SOON,
    STOPPED,
    assert_same,
    assert_whole,
    changed,
    progress,
    read_json,
    run_job,
    start_job,
    succeed,
)

STEPS = 40
OFTEN = {"SAVE_SECONDS": "0"}


@pytest.fixture(scope="module")
def task(task):
    """Long enough to be caught in each of its phases."""
    sizes = {"batch_size": 2, "gradient_accumulation_steps": 1, "num_train_steps": STEPS, "max_train_steps": STEPS}
    changes = {f"train_args.{key}": value for key, value in sizes.items()}
    return changed(task, {**changes, "dataloader_num_workers": 1, "validation.num_images": 2})


@pytest.fixture(scope="module")
def undisturbed(task, tmp_path_factory):
    started = time.monotonic()
    finished = succeed(task, tmp_path_factory.mktemp("undisturbed") / "out", env=OFTEN)
    return finished, time.monotonic() - started


def encoding(job):
    """A worker process is there."""
    return bool(job.workers())


MOMENTS = {
    "claimed": lambda job: (job.out / ".job" / "record.json").exists(),
    "encoding": encoding,
    "first save": lambda job: (job.out / ".job" / "progress").exists(),
    "training": lambda job: any(line["step"] >= 1 for line in progress(job.out)),
    "validation": lambda job: any(line["step"] == STEPS for line in progress(job.out)),
    "publishing": lambda job: (job.out / ".job" / "validation").exists(),
    "between the folders": lambda job: (job.out / "validation").exists(),
    "published": lambda job: (job.out / "checkpoint").exists(),
}


def kill(job):
    """SIGKILL, after which none of the job's processes survives."""
    job.process.kill()
    job.process.wait()
    job.assert_gone()


def kill_when(job, condition, what):
    """Kill at a moment seen from outside; False where the job was faster."""
    while not condition(job):
        if job.process.poll() is not None:
            assert job.finish().code == 0
            return False
        time.sleep(POLL)
    kill(job)
    return True


def disturb_and_finish(task, out, conditions):
    """Kill the same command at each of these moments in turn, then let it end."""
    kills = 0
    for what, condition in conditions:
        kills += kill_when(start_job(task, out, env=OFTEN), condition, what)
        assert_whole(out)
    return succeed(task, out, env=OFTEN), kills


@pytest.mark.parametrize(
    "moments",
    [
        ("claimed", "encoding", "training", "validation"),
        pytest.param(("publishing", "between the folders", "published"), marks=pytest.mark.slow),
        pytest.param(("first save",) * 3, marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_chosen_moment(task, undisturbed, tmp_path, moments):
    expected, _ = undisturbed
    finished, kills = disturb_and_finish(task, tmp_path / "out", [(moment, MOMENTS[moment]) for moment in moments])
    assert kills >= 1
    assert_same(finished.folders(), expected.folders())
    assert not (finished.out / ".job").exists()
    assert finished.result["status"] == "done"
    assert finished.result["global_step"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_killed_at_a_random_moment(task, undisturbed, tmp_path, seed):
    expected, seconds = undisturbed
    moment = time.monotonic() + random.Random(seed).uniform(0.0, seconds)
    finished, _ = disturb_and_finish(task, tmp_path / "out", [("by chance", lambda _: time.monotonic() >= moment)])
    assert_same(finished.folders(), expected.folders())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(task, undisturbed, tmp_path, seed):
    """Eight times, so that progress is made of many short stretches."""
    expected, seconds = undisturbed
    draws = random.Random(1000 + seed)

    def after(delay):
        start = time.monotonic()
        return lambda _: time.monotonic() >= start + delay

    out = tmp_path / "out"
    for _ in range(8):
        kill_when(start_job(task, out, env=OFTEN), after(draws.uniform(0.4, 1.0) * seconds), "by chance")
        assert_whole(out)
    assert_same(succeed(task, out, env=OFTEN).folders(), expected.folders())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16", "train_args.prediction_type": "v_prediction"},
        {"lora.init_lora_weights": "loftq", "lora.target_modules": ["to_q", "conv1"]},
        {"model.name": "xl"},
        {"model.name": "xl", "mixed_precision": "bf16"},
        {
            "train_args.train_text_encoder": True,
            "lora": {"rank": 4, "alpha": 2, "dropout": 0.2, "use_rslora": True, "target_modules": ["to_q", "conv1"]},
        },
    ],
    ids=["bf16", "loftq", "xl", "xl, bf16", "adapter's options"],
)
def test_killed_with_other_settings(task, xl_model, tmp_path, changes):
    task = changed(task, changes | ({"model.name": str(xl_model)} if "model.name" in changes else {}))
    expected = succeed(task, tmp_path / "undisturbed")
    moments = [(moment, MOMENTS[moment]) for moment in ("training", "validation")]
    finished, kills = disturb_and_finish(task, tmp_path / "out", moments)
    assert kills
    assert_same(finished.folders(), expected.folders())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_xl_with_trained_text_encoders_killed_at_two_random_moments(task, xl_model, tmp_path, seed):
    task = changed(task, {"model.name": str(xl_model), "train_args.train_text_encoder": True})
    started = time.monotonic()
    expected = succeed(task, tmp_path / "undisturbed", env=OFTEN)
    seconds, draws = time.monotonic() - started, random.Random(2000 + seed)

    def after(delay):
        start = time.monotonic()
        return lambda _: time.monotonic() >= start + delay

    out, kills = tmp_path / "out", 0
    for share in (draws.uniform(0.3, 0.7), draws.uniform(0.3, 0.9)):
        kills += kill_when(start_job(task, out, env=OFTEN), after(share * seconds), "by chance")
        assert_whole(out)
    assert kills
    assert_same(succeed(task, out, env=OFTEN).folders(), expected.folders())


def test_killed_in_a_chain_in_place(task, undisturbed, tmp_path):
    """The old checkpoint or the new one is there at every moment, and the chain ends with the same bytes."""
    expected, _ = undisturbed
    out = tmp_path / "out"
    own = out / "checkpoint"
    half = changed(task, {"train_args.num_train_steps": STEPS // 2})
    first = succeed(half, out)
    old = first.manifest["digest"]
    command = (half, out, "--checkpoint", own)
    conditions = [
        lambda job: any(line["step"] > STEPS // 2 + 3 for line in progress(job.out)),
        lambda job: (job.out / ".job" / "checkpoint").exists(),
        lambda job: read_json(own / "manifest.json")["digest"] != old,
    ]
    for condition in conditions:
        kill_when(start_job(*command, env=OFTEN), condition, "in place")
        assert_whole(out)
        assert own.exists()
    last = succeed(*command, env=OFTEN)
    assert_same(last.weights(), expected.weights())
    assert (own / "FINISH").exists()
    assert last.manifest["parent"] == old


def stop(job, signum):
    """Send a signal, and expect the end soon."""
    job.signal(signum)
    sent = time.monotonic()
    finished = job.finish()
    assert finished.code == STOPPED[signum], finished.stderr
    assert time.monotonic() - sent < SOON
    assert signal.Signals(signum).name in finished.error
    job.assert_gone()
    return finished


STOPS = ((signal.SIGINT, "encoding"), (signal.SIGTERM, "training"), (signal.SIGTERM, "validation"))


def check_stopped(finished, resumed_from):
    """What a stopped job says; the step it reached."""
    result = finished.result
    assert result["status"] == result["kind"] == "interrupted"
    assert result["code"] == finished.code
    assert result["message"] == finished.error
    assert not result["finished"]
    assert result["resumed_from_step"] == resumed_from
    assert result["steps_trained"] == result["global_step"] - resumed_from
    assert not (finished.out / "checkpoint").exists()
    return result["global_step"]


@pytest.mark.parametrize(
    "stops",
    [STOPS, pytest.param(((signal.SIGINT, "training"), (signal.SIGTERM, "training")), marks=pytest.mark.slow)],
    ids=["each phase", "again and again"],
)
def test_stopped_by_signals(task, undisturbed, tmp_path, stops):
    """Without frequent saves: what is there at the end was saved because of the signal."""
    expected, _ = undisturbed
    step = 0
    for signum, moment in stops:
        job = start_job(task, tmp_path / "out")
        job.until(lambda job=job, moment=moment, step=step: caught(job, moment, step), moment)
        step = check_stopped(stop(job, signum), step)
        assert step > 0 or moment == "encoding"
    again = succeed(task, tmp_path / "out")
    assert_same(again.folders(), expected.folders())
    assert again.result["resumed_from_step"] == step
    assert again.result["steps_trained"] == STEPS - step


def caught(job, moment, step):
    """The moment has come, in this process and not in the one before it."""
    if moment == "training":
        return any(line["step"] > step for line in progress(job.out))
    return MOMENTS[moment](job)


def test_stopped_at_the_very_start(task, tmp_path):
    """Before torch is imported, a signal ends the job as it does later."""
    job = start_job(task, tmp_path / "out")
    job.until((tmp_path / "out").exists, "its output folder")
    stop(job, signal.SIGTERM)


@pytest.mark.parametrize("signum", STOPPED)
def test_stopped_while_the_workers_start(task, tmp_path, signum):
    """By a signal to the whole group, as from a terminal: the workers are not yet there to ignore it."""
    job = start_job(changed(task, {"dataloader_num_workers": 2}), tmp_path / "out")
    job.until(lambda: len(job.workers()) == 2, "its workers")
    for pid in (*job.workers(), job.process.pid):
        os.kill(pid, signum)
    finished = job.finish()
    assert finished.code == STOPPED[signum], finished.stderr
    assert "Traceback" not in finished.stderr


def test_workers_die_with_a_killed_job(task, tmp_path):
    job = start_job(changed(task, {"dataloader_num_workers": 2}), tmp_path / "out")
    job.until(lambda: len(job.workers()) == 2, "its workers")
    kill(job)


def test_a_killed_worker_is_a_temporary_failure(task, undisturbed, tmp_path):
    """Code 75, and the same command goes on."""
    expected, _ = undisturbed
    job = start_job(task, tmp_path / "out")
    job.until(job.workers, "a worker")
    os.kill(job.workers()[0], signal.SIGKILL)
    finished = job.finish()
    assert finished.code == 75, finished.stderr
    assert finished.result["kind"] == "temporary"
    assert_same(succeed(task, tmp_path / "out").folders(), expected.folders())


def test_two_jobs_on_one_folder(task, undisturbed, tmp_path):
    """The second one is told to come back later, and disturbs nothing."""
    expected, _ = undisturbed
    job = start_job(task, tmp_path / "out")
    job.until((tmp_path / "out" / ".job").exists, "its claim")
    second = run_job(task, tmp_path / "out")
    assert second.code == 75
    assert "another job is running" in second.error
    finished = job.finish()
    assert finished.code == 0
    assert_same(finished.folders(), expected.folders())

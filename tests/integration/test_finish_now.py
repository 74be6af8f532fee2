"""A task that is told to finish publishes what is there, with the bytes of a task of so many steps."""

from __future__ import annotations

import shutil
import signal

import pytest

from tests.support.harness import assert_same, changed, folder_bytes, progress, read_json, run_job, start_job, succeed

ENDS_AT = 4
INTERIM = {"validation.every_n_steps": 2, "checkpoint_every_n_steps": 2}


@pytest.fixture(scope="module")
def long_task(task):
    return changed(task, {**INTERIM, "train_args.num_train_steps": 8})


@pytest.fixture(scope="module")
def expected(long_task, tmp_path_factory):
    """The task of so many steps."""
    short = changed(long_task, {"train_args.num_train_steps": ENDS_AT})
    return succeed(short, tmp_path_factory.mktemp("expected") / "out")


def asked(out, text=f"{ENDS_AT}\n"):
    out.mkdir(parents=True, exist_ok=True)
    (out / "FINISH_NOW").write_text(text)
    return out


@pytest.fixture(scope="module")
def ended(long_task, tmp_path_factory):
    return succeed(long_task, asked(tmp_path_factory.mktemp("ended") / "out"))


def assert_is_as_if_so_long(finished, expected):
    ours, theirs = finished.folders(), expected.folders()
    assert ours.keys() == theirs.keys()
    for name in ("manifest.json", "state.json"):  # they name the task and its length
        del ours[f"checkpoint/{name}"], theirs[f"checkpoint/{name}"]
    assert_same(ours, theirs)
    assert finished.manifest["ended_at_step"] == finished.manifest["global_step"] == ENDS_AT
    assert "ended_at_step" not in expected.manifest
    assert not (finished.out / "FINISH_NOW").exists() and not (finished.out / ".job").exists()


def test_its_result_is_that_of_a_task_of_so_many_steps(ended, expected):
    assert_is_as_if_so_long(ended, expected)
    assert ended.result["finish_now"] and not ended.result["finished"] and not expected.result["finish_now"]
    assert not (ended.out / "checkpoint" / "FINISH").exists()
    assert "told to finish" in ended.result["message"]


def test_a_later_task_goes_on_from_it_exactly(long_task, ended, expected, tmp_path):
    last = [
        succeed(long_task, tmp_path / name, "--checkpoint", before.out / "checkpoint")
        for name, before in (("a", ended), ("b", expected))
    ]
    assert_same(last[0].weights(), last[1].weights())
    assert last[0].result["finished"] and "ended_at_step" not in last[0].manifest


def test_it_can_be_verified(long_task, ended, tmp_path):
    verify = ["verify", ended.out]
    checked = run_job(long_task, None, *verify, "--ended-early")
    assert (checked.code, checked.stdout.partition(":")[0]) == (0, "identical"), checked.stdout + checked.stderr


def test_without_being_accepted_it_is_not_the_result_of_its_task(long_task, ended, tmp_path):
    """A node may do less than it was asked for, and say that it was told to finish."""
    checked = run_job(long_task, None, "verify", ended.out)
    assert checked.code == 1 and f"told to finish after step {ENDS_AT}" in checked.stdout


def test_killed_before_publication_it_ends_at_the_same_step(long_task, expected, tmp_path):
    out = asked(tmp_path / "out")
    running = start_job(long_task, out)

    running.until(lambda: progress(out) and "told to finish" in running.stderr, "its last images")
    running.process.kill()
    running.process.wait()
    assert (out / "FINISH_NOW").read_text() == f"{ENDS_AT}\n" and not (out / "checkpoint").exists()
    assert_is_as_if_so_long(succeed(long_task, out), expected)


def test_a_signal_finishes_it_too(task, tmp_path):
    endless = changed(task, {"train_args.num_train_steps": 5000, "train_args.max_train_steps": 5000})
    running = start_job(endless, tmp_path / "out")
    running.until_step(1)
    running.signal(signal.SIGUSR1)
    finished = running.finish()
    assert finished.code == 0, finished.stderr
    assert 0 < finished.manifest["ended_at_step"] == finished.result["global_step"] < 5000
    assert finished.result["finish_now"] and not (finished.out / "FINISH_NOW").exists()


@pytest.mark.slow
def test_all_processes_end_after_the_same_step(long_task, expected, tmp_path):
    """The first one alone sees the file."""
    finished = succeed(long_task, asked(tmp_path / "out"), env={"PROCESSES": "2"})
    assert "starting 2 processes" in finished.stderr
    assert_same(finished.weights(), expected.weights())
    assert finished.manifest["ended_at_step"] == ENDS_AT


def test_several_processes_take_the_signal_from_their_launcher(task, tmp_path):
    """They agree on the step after which they end."""
    endless = changed(task, {"train_args.num_train_steps": 5000, "train_args.max_train_steps": 5000})
    running = start_job(endless, tmp_path / "out", env={"PROCESSES": "2"})
    running.until_step(1)
    running.signal(signal.SIGUSR1)
    finished = running.finish()
    assert finished.code == 0, finished.stderr
    assert "starting 2 processes" in finished.stderr
    reached = finished.manifest["ended_at_step"]
    assert 0 < reached < 5000
    expected = succeed(changed(endless, {"train_args.num_train_steps": reached}), tmp_path / "expected")
    assert_same(finished.weights(), expected.weights())


def test_a_file_that_comes_with_the_last_step_changes_nothing(short_task, tmp_path):
    plain, late = succeed(short_task, tmp_path / "plain"), succeed(short_task, asked(tmp_path / "late", "2"))
    assert_same(late.folders(), plain.folders())
    assert late.result["finish_now"] and late.result["finished"]


def test_a_training_whose_maximum_is_lowered_to_the_step_reached_is_finished(long_task, ended, tmp_path):
    lowered = changed(long_task, {"train_args.max_train_steps": ENDS_AT})
    last = succeed(lowered, tmp_path / "out", "--checkpoint", ended.out / "checkpoint")
    assert last.result["steps_trained"] == 0 and last.result["finished"]
    assert (last.out / "checkpoint" / "FINISH").exists()
    found, expected = last.weights(), ended.weights()
    for files in (found, expected):
        files.pop("lora_webui.safetensors")  # its metadata say how long the training was to be
    assert_same(found, expected)
    in_place = tmp_path / "in-place"
    shutil.copytree(ended.out, in_place)
    succeed(lowered, in_place, "--checkpoint", in_place / "checkpoint")
    assert_same(folder_bytes(in_place / "checkpoint"), folder_bytes(last.out / "checkpoint"))


@pytest.mark.slow
def test_a_chain_ends_after_the_task_that_was_told_to_finish(task, tmp_path):
    sliced = changed(task, {"train_args.num_train_steps": 3})
    out = tmp_path / "chain"
    asked(out, "")  # the file may lie in the chain's folder
    first = run_job(sliced, None, "chain", "--output", out)
    assert first.code == 0, first.stderr
    ends = [read_json(out / name / "result.json") for name in sorted(p.name for p in out.iterdir() if p.is_dir())]
    assert [end["finish_now"] for end in ends] == [False] * (len(ends) - 1) + [True]
    assert "told to finish" in first.stdout and not (out / "FINISH_NOW").exists()
    again = run_job(sliced, None, "chain", "--output", out)
    assert again.code == 0 and "the training is finished" in again.stdout

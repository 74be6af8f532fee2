"""How a job ended: what is written, and when it is not."""

import json
import platform

import pytest

from engine.core.errors import Interrupted, NonFiniteError, OutputError, TaskError, TemporaryError
from engine.core.process.termination import write_termination_message
from engine.results.outcome import Before, Clock, Outcome, describe, exit_code, exit_kind, recording_failure
from engine.results.output.folder import JobRecord, OutputFolder
from tests.support.output_folders import put_result, put_unfinished, snapshot

JOB, OTHER = JobRecord("task", None), JobRecord("other", None)
FIELDS = {
    "status", "code", "kind", "message", "global_step", "steps_trained", "resumed_from_step", "finished", "seconds",
    "peak_memory_bytes", "peak_rss_bytes", "skipped_images", "checkpoint_digest", "heldout_loss", "best_step",
    "shares", "started", "ended", "version", "revision", "device", "host", "task_digest", "warnings", "finish_now",
}  # fmt: skip


def fail(out, error, *, claim=False, overwrite=False):
    outcome = Outcome(global_step=7, may_overwrite=overwrite)
    with pytest.raises(type(error)), OutputFolder.lock(out) as output, recording_failure(output, outcome):
        if claim:
            output.claim(JOB, in_place=False, overwrite=overwrite)
        raise error
    path = out / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    "error, status, code, kind",
    [
        (TaskError("seed: what\n to do"), "failed", 2, "task"),
        (NonFiniteError("x"), "failed", 8, "non-finite"),
        (TemporaryError("x"), "failed", 75, "temporary"),
        (Interrupted(15, "x"), "interrupted", 143, "interrupted"),
        (Interrupted(2, "x"), "interrupted", 130, "interrupted"),
        (ZeroDivisionError("x"), "failed", 70, "bug"),
    ],
)
def test_every_ending_is_recorded(tmp_path, error, status, code, kind):
    found = fail(tmp_path, error)
    assert found.keys() == FIELDS
    assert (found["status"], found["code"], found["kind"]) == (status, code, kind)
    assert (exit_code(error), exit_kind(error)) == (code, kind)
    assert found["message"] == describe(error) and "\n" not in found["message"]
    assert found["global_step"] == 7 and found["peak_memory_bytes"] > 1 << 20 and found["peak_rss_bytes"] > 1 << 20
    assert found["started"] <= found["ended"] and found["ended"].endswith("Z")
    assert found["version"] and found["host"] == platform.node()


class TestWhoOwnsTheFolder:
    @pytest.mark.parametrize("put", [put_result, put_unfinished])
    def test_anothers_is_left_alone(self, tmp_path, put):
        put(tmp_path, OTHER)
        before = snapshot(tmp_path)
        assert fail(tmp_path, TaskError("x")) is None
        assert fail(tmp_path, TaskError("x"), claim=False) is None
        assert snapshot(tmp_path) == before

    def test_a_refused_claim_writes_nothing(self, tmp_path):
        put_result(tmp_path, OTHER)
        before = snapshot(tmp_path)
        with pytest.raises(OutputError), OutputFolder.lock(tmp_path) as output, recording_failure(output, Outcome()):
            output.claim(JOB, in_place=False, overwrite=False)
        assert snapshot(tmp_path) == before

    def test_an_empty_a_claimed_and_one_to_overwrite_are_written(self, tmp_path):
        assert fail(tmp_path / "a", TaskError("x"))
        assert fail(tmp_path / "b", TaskError("x"), claim=True)
        put_result(tmp_path / "c", OTHER)
        assert fail(tmp_path / "c", TaskError("x"), overwrite=True)

    def test_the_first_error_counts_when_the_folder_is_what_failed(self, tmp_path, monkeypatch):
        def refuse(self, result):
            raise OutputError("cannot write")

        monkeypatch.setattr(OutputFolder, "write_result", refuse)
        assert fail(tmp_path, NonFiniteError("the first")) is None


def test_a_message_is_one_line_of_a_bounded_length():
    assert describe(TaskError("a\n\x1b[2Jb \u202e" + "c" * 10**6 + "end")).startswith("a ?[2Jb ?ccc")
    assert len(describe(TaskError("c" * 10**6))) < 20_000
    assert describe(TaskError("c" * 10**6 + "end")).endswith("cend")


def test_success():
    outcome = Outcome(message="trained", global_step=3, steps_trained=2, resumed_from_step=1, finished=True)
    found = outcome.done()
    assert found.keys() == FIELDS and json.dumps(found, allow_nan=False)
    assert (found["status"], found["code"], found["kind"], found["finished"]) == ("done", 0, "done", True)


def test_the_clock_adds_up_by_phase(monkeypatch):
    now = iter([0.0, 1.0, 5.0, 7.5, 10.0, 10.25])
    monkeypatch.setattr("engine.results.outcome.time.monotonic", lambda: next(now))
    clock = Clock()
    for name in ("train", "encode"):
        with clock.phase(name):
            pass
    with pytest.raises(KeyError), clock.phase("train"):
        raise KeyError
    assert clock.seconds == {"train": 1.25, "encode": 2.5}


def test_a_phase_is_announced_as_it_begins_and_not_again():
    told = []
    clock = Clock(watchers=[told.append])
    for name in ("encode", "train", "train", "encode"):
        with clock.phase(name):
            assert told[-1] == name
    assert told == ["encode", "train", "encode"]


def test_what_was_known_goes_into_the_result(monkeypatch):
    monkeypatch.setattr("engine.results.outcome.notes", lambda: ["heed this"])
    monkeypatch.setenv("SD_LORA_TASK_REVISION", "abc")
    found = Outcome(device={"type": "cpu"}, task_digest="5" * 64).done()
    assert (found["device"], found["task_digest"]) == ({"type": "cpu"}, "5" * 64)
    assert (found["warnings"], found["revision"]) == (["heed this"], "abc")


class TestSeveralProcessesOfATask:
    """Each goes on where the one before was interrupted."""

    def test_their_times_and_skipped_images_add_up(self):
        first = Outcome(newly_skipped=lambda: [("a.png", "broken"), ("b.png", "broken")])
        first.clock.seconds |= {"train": 10.0, "encode": 3.0}
        saved = json.loads(json.dumps(first.so_far().described()))
        second = Outcome(before=Before.parse(saved), newly_skipped=lambda: [("b.png", "broken"), ("c.png", "empty")])
        second.clock.seconds |= {"load": 1.0, "train": 5.0}
        whole = second.so_far()
        assert list(whole.seconds.items()) == [("train", 15.0), ("encode", 3.0), ("load", 1.0)]
        assert [name for name, _ in whole.skipped] == ["a.png", "b.png", "c.png"]
        assert whole.peak_memory_bytes >= saved["peak_memory_bytes"] > 0
        assert second.done()["skipped_images"] == 3
        assert second.done()["seconds"] == {"load": 1.0, "train": 5.0}, "its own"
        assert second.done()["shares"] == {"load": 0.167, "train": 0.833}

    def test_two_images_of_one_name_are_two(self):
        both = [("a.png", "broken"), ("a.png", "broken")]
        assert Outcome(newly_skipped=lambda: both).skipped == both
        assert Outcome(before=Before(skipped=both), newly_skipped=lambda: both[:1]).skipped == both

    def test_the_peak_is_the_highest(self):
        assert Outcome(before=Before(peak_memory_bytes=1 << 60)).so_far().peak_memory_bytes == 1 << 60


class TestTerminationMessage:
    def test_is_written_where_there_is_a_place(self, tmp_path):
        path = tmp_path / "termination-log"
        write_termination_message("x", path)
        assert not path.exists()
        path.write_text("")
        write_termination_message("ü" * 5000, path)
        assert len(path.read_bytes()) == 4096

    @pytest.mark.parametrize("message", ["a path \udcff in it", "\ud800"])
    def test_a_path_that_is_no_text_does_not_end_the_program_in_a_traceback(self, tmp_path, message):
        path = tmp_path / "termination-log"
        path.write_text("")
        write_termination_message(message, path)
        assert path.read_bytes()

"""The output folder: who may take it, and that nothing complete is lost wherever a job dies."""

import errno
import hashlib
import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.errors import OutputError
from engine.core.files.atomic_files import Stored
from engine.results.output.folder import Claim, JobRecord, OutputFolder
from tests.support.output_folders import (
    AGAIN,
    JOB,
    OTHER,
    claim,
    files,
    progress_of,
    put_result,
    put_unfinished,
    snapshot,
)
from tests.unit.core.files.test_atomic_files import contents


class TestClaim:
    """What lies in OUT, as (result, unfinished), and what a job finds."""

    @pytest.mark.parametrize(
        "result, unfinished, in_place, job, found",
        [
            (None, None, False, JOB, Claim.FRESH),
            (None, JOB, False, JOB, Claim.CONTINUES),
            (JOB, None, False, JOB, Claim.FINISHED),
            (JOB, JOB, False, JOB, Claim.FINISHED),  # killed between publishing and clearing up
            (OTHER, None, False, JOB, OutputError),
            (None, OTHER, False, JOB, OutputError),
            (OTHER, OTHER, False, JOB, OutputError),
            (OTHER, JOB, False, JOB, Claim.CONTINUES),
            # the same task from another parent is another job
            (JobRecord("task", None), None, False, JOB, OutputError),
            (None, JobRecord("task", None), False, JOB, OutputError),
            # in place: the result in OUT is what this job continues
            (OTHER, None, True, JOB, Claim.FRESH),
            (OTHER, JOB, True, JOB, Claim.CONTINUES),
            (OTHER, OTHER, True, JOB, Claim.FRESH),  # the other is complete, though not cleared up
            (OTHER, JobRecord("third", "x"), True, JOB, OutputError),
            # the same task file again and again in place: each time the next slice ...
            (JOB, None, True, AGAIN, Claim.FRESH),
            (JOB, AGAIN, True, AGAIN, Claim.CONTINUES),
            # ... but a start that only completes a crashed slice is not the next one
            (JOB, JOB, True, AGAIN, Claim.FINISHED),
        ],
    )
    def test_table(self, tmp_path, result, unfinished, in_place, job, found):
        if result:
            put_result(tmp_path, result)
        if unfinished:
            put_unfinished(tmp_path, unfinished)
        before = snapshot(tmp_path)
        if found is OutputError:
            with pytest.raises(OutputError, match="--overwrite") as caught:
                claim(tmp_path, job, in_place=in_place)
            assert caught.value.code == 7
            assert snapshot(tmp_path) == before
            return
        assert claim(tmp_path, job, in_place=in_place) is found
        after = snapshot(tmp_path)
        published = {path: data for path, data in before.items() if path.parts[0] != ".job"}
        assert {path: after.get(path) for path in published} == published, "claiming touched a result"
        if found is Claim.FINISHED:
            assert not (tmp_path / ".job").exists()
        else:
            record = json.loads(after[Path(".job/record.json")])
            assert (record["task_digest"], record["parent"]) == (job.task_digest, job.parent)
        assert (Path(".job/progress") in after) == (found is Claim.CONTINUES)

    @pytest.mark.parametrize("what", ["result", "unfinished"])
    def test_overwrite_takes_it_and_keeps_the_result_until_it_is_replaced(self, tmp_path, what):
        (put_result if what == "result" else put_unfinished)(tmp_path, OTHER)
        assert claim(tmp_path, overwrite=True) is Claim.FRESH
        assert not (tmp_path / ".job" / "progress").exists()
        if what == "result":
            assert contents(tmp_path / "checkpoint") == files(OTHER)

    @pytest.mark.parametrize("name", ["checkpoint", "validation"])
    def test_a_folder_that_is_nobodys_result_is_not_ours_to_replace(self, tmp_path, name):
        (tmp_path / name).mkdir()
        with pytest.raises(OutputError, match=f"{name} is another job's result"):
            claim(tmp_path)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"task_digest": 1}', "[" * 100_000])
    def test_a_garbled_record_counts_as_none(self, tmp_path, text):
        (tmp_path / ".job").mkdir()
        (tmp_path / ".job" / "record.json").write_text(text)
        assert claim(tmp_path) is Claim.FRESH

    def test_a_fresh_job_removes_an_earlier_ones_ending(self, tmp_path):
        for name in ("result.json", "progress.jsonl"):
            (tmp_path / name).write_text("{}")
        assert claim(tmp_path) is Claim.FRESH
        assert not (tmp_path / "result.json").exists() and not (tmp_path / "progress.jsonl").exists()

    def test_untouched_means_no_result_and_no_job(self, tmp_path):
        with OutputFolder.lock(tmp_path / "out") as output:
            assert output.is_untouched
            output.write_result({"status": "failed"})
            assert output.is_untouched
            output.claim(JOB, in_place=False, overwrite=False)
            assert not output.is_untouched

    @pytest.mark.parametrize("in_place", [False, True])
    def test_a_job_that_failed_before_it_trained_does_not_block_its_correction(self, tmp_path, in_place):
        if in_place:
            put_result(tmp_path, OTHER)
        put_unfinished(tmp_path, JobRecord("with a typo", JOB.parent), progress=None)
        assert claim(tmp_path, in_place=in_place) is Claim.FRESH

    def test_settling_clears_up_after_a_published_result_only(self, tmp_path):
        put_result(tmp_path, JOB)
        put_unfinished(tmp_path, OTHER)
        with OutputFolder.lock(tmp_path) as output:
            output.settle()
            assert (tmp_path / ".job" / "progress").exists()
            shutil.rmtree(tmp_path / ".job")
            put_unfinished(tmp_path, JOB)
            output.settle()
        assert not (tmp_path / ".job").exists()

    def test_settling_removes_the_folder_that_a_job_died_removing(self, tmp_path):
        put_result(tmp_path, JOB)
        (tmp_path / ".job").mkdir()
        assert claim(tmp_path) is Claim.FINISHED
        assert not (tmp_path / ".job").exists()

    def test_who_asked_and_what_is_told(self, tmp_path):
        with OutputFolder.lock(tmp_path) as output:
            assert not output.is_same_request("request") and not output.is_recorded_as_done("digest")
            output.claim(JOB, in_place=False, overwrite=False, request="request")
            assert output.is_same_request("request") and not output.is_same_request("another")
            for result in ({"status": "interrupted", "checkpoint_digest": "digest"}, {"status": "done"}, []):
                (tmp_path / "result.json").write_text(json.dumps(result))
                assert not output.is_recorded_as_done("digest")
            output.write_result({"status": "done", "checkpoint_digest": "digest"})
            assert output.is_recorded_as_done("digest")

    def test_when_nothing_here_can_be_anothers(self, tmp_path):
        """Then signs of life may be written before the job knows what it is."""

        def is_free(request="r", *, in_place=False):
            return OutputFolder(tmp_path).is_free_for(request, in_place=in_place)

        assert is_free()
        (tmp_path / "progress.jsonl").write_text("")  # of a job that failed before it trained
        assert is_free()
        put_result(tmp_path, OTHER)
        assert not is_free() and is_free(in_place=True)
        (tmp_path / "checkpoint" / "FINISH").touch()
        assert not is_free(in_place=True), "a finished chain changes nothing"
        (tmp_path / "checkpoint" / "FINISH").unlink()
        put_unfinished(tmp_path, OTHER)
        assert not is_free() and not is_free(in_place=True)
        with OutputFolder.lock(tmp_path) as output:
            output.claim(JOB, in_place=False, overwrite=True, request="r")
        assert is_free() and not is_free("another")

    def test_a_refusal_is_remembered(self, tmp_path):
        put_result(tmp_path, OTHER)
        with OutputFolder.lock(tmp_path) as output:
            with pytest.raises(OutputError):
                output.claim(JOB, in_place=False, overwrite=False)
            assert output.refused
            assert output.claim(JOB, in_place=True, overwrite=False) is Claim.FRESH and not output.refused

    def test_a_new_folder_is_open_to_everyone(self, tmp_path):
        before = os.umask(0o077)
        try:
            with OutputFolder.lock(tmp_path / "out"):
                pass
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


WORLD = {"rank": 8, "micro_batches": 1, "dataset": "a" * 64, "base_model": f"m@{'1' * 40}"}
MINE = JobRecord("task", None, invariants=WORLD, curve="c" * 16, rows=13, max_steps=30)


def put_published(out, job, *, step=10):
    """A finished result as `engine.job.results.publish` leaves it, as far as it says whose it is."""
    (out / "checkpoint").mkdir(parents=True)
    manifest = {"task_digest": job.task_digest, "parent": job.parent, "global_step": step}
    manifest["dataset"] = {"rows": job.rows} if job.rows else {}
    state = {"world": job.invariants, "settings": {"validation": {"dataset": job.curve} if job.curve else {}}}
    (out / "checkpoint" / "manifest.json").write_text(json.dumps(manifest))
    (out / "checkpoint" / "state.json").write_text(json.dumps(state))


def put_interrupted(out, job):
    with OutputFolder.lock(out) as output:
        output.claim(job, in_place=False, overwrite=False)
        output.save_progress(b"exact")


CHANGES = {
    "K": (
        replace(MINE, invariants=WORLD | {"micro_batches": 2}),
        r"K, the number of processes times gradient_accumulation_steps, is 1 then, 2 now",
    ),
    "the dataset": (
        replace(MINE, invariants=WORLD | {"dataset": "b" * 64}, rows=14),
        r"images or captions have changed since \(13 rows then, 14 now\)",
    ),
    "the model's branch": (
        replace(MINE, invariants=WORLD | {"base_model": f"m@{'2' * 40}"}),
        r"base_model is 'm@111111111111…' then, 'm@222222222222…' now",
    ),
    "an option that was at its default": (
        replace(MINE, invariants=WORLD | {"alpha": 4.0}),
        r"alpha is at its default then, 4.0 now",
    ),
    "the held-out images": (
        replace(MINE, curve="d" * 16),
        r"the held-out images or captions have changed since",
    ),
}


class TestWhichTraining:
    """The same task digest does not make the same training: what its bytes depend on is compared as well."""

    @pytest.mark.parametrize("what", CHANGES)
    @pytest.mark.parametrize("put", [put_interrupted, put_published])
    def test_another_world_is_refused_with_both_values(self, tmp_path, put, what):
        job, said = CHANGES[what]
        put(tmp_path, MINE)
        before = snapshot(tmp_path)
        with pytest.raises(OutputError, match=said) as caught:
            claim(tmp_path, job)
        assert caught.value.code == 7 and "--overwrite" in str(caught.value)
        assert snapshot(tmp_path) == before
        assert claim(tmp_path, job, overwrite=True) is Claim.FRESH

    @pytest.mark.parametrize("change", ["K", "the dataset"])
    def test_what_another_task_would_train_otherwise_is_told(self, tmp_path, change):
        """A local dataset is in the task's digest by its content."""
        put_interrupted(tmp_path, MINE)
        job, said = CHANGES[change]
        with pytest.raises(OutputError, match=f"progress of another task: {said}; choose another output folder"):
            claim(tmp_path, replace(job, task_digest="e" * 64))

    @pytest.mark.parametrize("put, found", [(put_interrupted, Claim.CONTINUES), (put_published, Claim.FINISHED)])
    def test_the_same_world_goes_on_or_is_done(self, tmp_path, put, found):
        put(tmp_path, MINE)
        assert claim(tmp_path, MINE) is found

    def test_a_result_older_than_the_count_of_rows_is_still_its_tasks(self, tmp_path):
        put_published(tmp_path, replace(MINE, rows=None))
        assert claim(tmp_path, MINE) is Claim.FINISHED
        with pytest.raises(OutputError, match=r"images or captions have changed since \(14 rows now\)"):
            claim(tmp_path, CHANGES["the dataset"][0])

    def test_progress_that_does_not_say_what_it_is_of_is_begun_anew(self, tmp_path):
        """As an earlier version saved it."""
        put_unfinished(tmp_path, MINE)
        assert claim(tmp_path, MINE) is Claim.ANEW
        assert not (tmp_path / ".job" / "progress").exists()

    def test_a_slice_that_was_killed_after_it_was_published_is_done_in_the_same_world_alone(self, tmp_path):
        put_interrupted(tmp_path, MINE)
        put_published(tmp_path, MINE)
        with pytest.raises(OutputError, match="K, the number"):
            claim(tmp_path, CHANGES["K"][0])
        assert claim(tmp_path, MINE) is Claim.FINISHED

    def test_what_is_claimed_is_recorded(self, tmp_path):
        with OutputFolder.lock(tmp_path) as output:
            found = {"base_model": {"revision": "1" * 40}, "device": {"type": "cpu"}}
            output.claim(MINE, in_place=False, overwrite=False, request="request", found=found)
            resolved = output.resolved("request", result=True)
            assert resolved | found == resolved
            assert output.resolved("another request", result=True) is None
        record = json.loads((tmp_path / ".job" / "record.json").read_text())
        assert record["world"] == WORLD and record["rows"] == 13 and record["device"] == {"type": "cpu"}

    def test_what_a_result_was_made_of_is_found_again(self, tmp_path):
        put_published(tmp_path, MINE)
        output = OutputFolder(tmp_path)
        assert output.resolved("request", result=True)["dataset"] == {"rows": 13}
        assert output.resolved("request", result=False) is None


class TestGoingOn:
    def test_the_refusal_names_the_checkpoint_and_its_step(self, tmp_path):
        put_published(tmp_path, replace(MINE, task_digest="with fewer steps"), step=10)
        with pytest.raises(OutputError) as caught:
            claim(tmp_path, MINE)
        assert f"to continue it from step 10, add --checkpoint {tmp_path / 'checkpoint'};" in str(caught.value)
        assert "--overwrite" in str(caught.value)

    @pytest.mark.parametrize(
        "theirs, step",
        [(replace(MINE, task_digest="other"), 30), (replace(CHANGES["K"][0], task_digest="other"), 10)],
    )
    def test_not_where_it_could_not_be_continued(self, tmp_path, theirs, step):
        put_published(tmp_path, theirs, step=step)
        with pytest.raises(OutputError, match=r"another job's result.*; choose another"):
            claim(tmp_path, MINE)

    @pytest.mark.parametrize("put", [put_published, put_interrupted])
    def test_images_that_were_added_or_removed_are_told(self, tmp_path, put):
        """The folder's content is part of the task's digest, but whoever runs the same command has changed no task."""
        put(tmp_path, MINE)
        with pytest.raises(OutputError, match=r"have changed since \(13 rows then, 14 now\); choose another"):
            claim(tmp_path, replace(CHANGES["the dataset"][0], task_digest="with another fingerprint"))

    def test_of_two_trainings_that_have_nothing_in_common_little_is_told(self, tmp_path):
        put_published(tmp_path, replace(MINE, invariants={f"key{n}": n for n in range(30)}))
        with pytest.raises(OutputError, match=r"another job's result: .*, and \d+ other differences; choose another"):
            claim(tmp_path, replace(MINE, task_digest="other"))


class TestProgress:
    def test_there_and_back(self, tmp_path):
        with OutputFolder.lock(tmp_path) as output:
            output.claim(JOB, in_place=False, overwrite=False)
            assert progress_of(output) is None
            for payload in (b"", b"1" * 10_000):
                output.save_progress(payload)
                assert progress_of(output) == payload

    def test_a_damaged_one_counts_as_none(self, tmp_path):
        put_unfinished(tmp_path, JOB)
        path = tmp_path / ".job" / "progress"
        path.write_bytes(path.read_bytes()[:-1])
        with OutputFolder.lock(tmp_path) as output:
            assert progress_of(output) is None


def test_published_files_may_be_in_a_folder(tmp_path):
    inner = {"step-1/0.png": b"one", "step-2/0.png": b"two"}
    with OutputFolder.lock(tmp_path / "out") as output:
        output.claim(JOB, in_place=False, overwrite=False)
        for _ in range(2):
            output.publish(output.validation, files(JOB) | inner, last="manifest.json")
        found = {str(path): data for path, data in snapshot(output.validation).items()}
        assert found == files(JOB) | inner
        assert {stat.S_IMODE(path.stat().st_mode) for path in output.validation.iterdir() if path.is_dir()} == {0o755}
        output.publish(output.validation, files(JOB), last="manifest.json")
        assert set(snapshot(output.validation)) == {Path(name) for name in files(JOB)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_is_kept_belongs_to_the_owner_of_the_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, 1234, 2345)
    with OutputFolder.lock(out) as output:
        output.claim(JOB, in_place=False, overwrite=False)
        output.store([b"data"])
        output.publish(output.validation, {"inner/a": b"", "manifest.json": b""}, last="manifest.json")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in out.rglob("*")} == {(1234, 2345)}


NESTED = {"part/a": b"one", "steps/000001/part/a": b"two", "manifest.json": b"{}"}


class TestStore:
    def publish(self, output):
        stored = {name: output.store([data[:1], memoryview(data)[1:]]) for name, data in NESTED.items()}
        output.publish(output.checkpoint, stored, last="manifest.json")
        assert snapshot(output.checkpoint) == {Path(name): data for name, data in NESTED.items()}
        return stored

    @pytest.fixture
    def output(self, tmp_path):
        with OutputFolder.lock(tmp_path / "out") as locked:
            locked.claim(JOB, in_place=False, overwrite=False)
            yield locked

    def test_what_is_published_is_not_copied(self, output):
        stored = self.publish(output)
        for name, file in stored.items():
            published = output.checkpoint / name
            assert published.samefile(file.path) and stat.S_IMODE(published.stat().st_mode) == 0o644
            assert stat.S_IMODE(published.parent.stat().st_mode) == 0o755

    def test_it_is_where_the_file_system_has_no_links(self, output, monkeypatch):
        def refuse(*_):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        for name, file in self.publish(output).items():
            assert not (output.checkpoint / name).samefile(file.path)

    def test_another_results_file_is_copied(self, output, tmp_path):
        (tmp_path / "other").write_bytes(b"x")
        other = Stored(tmp_path / "other", hashlib.sha256(b"x").hexdigest())
        output.publish(output.checkpoint, {"manifest.json": other}, last="manifest.json")
        assert not (output.checkpoint / "manifest.json").samefile(other.path)

    def test_a_damaged_one_is_not_published(self, output):
        stored = output.store([b"data"])
        stored.path.write_bytes(b"date")
        with pytest.raises(OutputError, match="gone or damaged"):
            output.publish(output.checkpoint, {"manifest.json": stored}, last="manifest.json")
        assert not output.checkpoint.exists()

    def test_a_full_disk_leaves_nothing_of_it(self, output):
        before = output.store([b"before"])

        def pieces():
            yield b"half"
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OutputError, match="the disk is full"):
            output.store(pieces())
        assert list(before.path.parent.iterdir()) == [before.path] and before.is_whole()

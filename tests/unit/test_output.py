"""The output folder: who may take it, and that nothing complete is lost wherever a job dies."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine import storage
from engine.errors import OutputError, TemporaryError
from engine.output import Claim, JobRecord, OutputFolder
from tests.unit.test_storage import Crash, contents, crash_at

JOB = JobRecord("task", "parent")
OTHER = JobRecord("other task", "parent")
AGAIN = JobRecord("task", "result of task")
"""The same task started again in place, after its result became the checkpoint."""
ROOT = Path(__file__).parents[2]


def manifest(job):
    return json.dumps({"task_digest": job.task_digest, "parent": job.parent}).encode()


def files(job):
    return {"weights": b"of " + job.task_digest.encode(), "manifest.json": manifest(job)}


def put_result(out, job):
    for name in ("checkpoint", "validation"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
        for file, data in files(job).items():
            (out / name / file).write_bytes(data)


def put_unfinished(out, job, progress=b"saved"):
    (out / ".job").mkdir(parents=True)
    (out / ".job" / "record.json").write_text(json.dumps({"task_digest": job.task_digest, "parent": job.parent}))
    if progress is not None:
        (out / ".job" / "progress").write_bytes(storage.seal(progress))


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def claim(out, job=JOB, *, in_place=False, overwrite=False):
    with OutputFolder.lock(out) as output:
        return output.claim(job, in_place=in_place, overwrite=overwrite)


def run_job(output, job, *, in_place=False):
    """What `engine.run` does with the folder, with bytes in place of training."""
    if output.claim(job, in_place=in_place, overwrite=False) is Claim.FINISHED:
        return
    done = int(output.load_progress() or b"0")
    for step in range(done + 1, 3):
        output.save_progress(str(step).encode())
    output.publish(output.validation, files(job), last="manifest.json")
    output.publish(output.checkpoint, files(job), last="manifest.json")
    output.write_result({"status": "done"})
    output.complete()


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
            assert not output.is_asked_by("request") and not output.tells_of("digest")
            output.claim(JOB, in_place=False, overwrite=False, request="request")
            assert output.is_asked_by("request") and not output.is_asked_by("another")
            for result in ({"status": "interrupted", "checkpoint_digest": "digest"}, {"status": "done"}, []):
                (tmp_path / "result.json").write_text(json.dumps(result))
                assert not output.tells_of("digest")
            output.write_result({"status": "done", "checkpoint_digest": "digest"})
            assert output.tells_of("digest")

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


class TestProgress:
    def test_there_and_back(self, tmp_path):
        with OutputFolder.lock(tmp_path) as output:
            output.claim(JOB, in_place=False, overwrite=False)
            assert output.load_progress() is None
            for payload in (b"", b"1" * 10_000):
                output.save_progress(payload)
                assert output.load_progress() == payload

    def test_a_damaged_one_counts_as_none(self, tmp_path):
        put_unfinished(tmp_path, JOB)
        path = tmp_path / ".job" / "progress"
        path.write_bytes(path.read_bytes()[:-1])
        with OutputFolder.lock(tmp_path) as output:
            assert output.load_progress() is None


class TestCrashes:
    """A job that dies at any operation, and the same command again."""

    @pytest.mark.parametrize("can_exchange", [True, False])
    @pytest.mark.parametrize("kind", ["fresh", "in place", "same task in place"])
    def test_ends_the_same_and_loses_nothing(self, tmp_path, monkeypatch, can_exchange, kind):
        if not can_exchange:
            monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the operation counts; its time does not
        in_place = kind != "fresh"
        parent = {"fresh": None, "in place": OTHER, "same task in place": JobRecord(JOB.task_digest, None)}[kind]
        for n in range(300):
            out = tmp_path / str(n)
            if parent:
                put_result(out, parent)
            died = self.attempt(out, n, monkeypatch, in_place)
            with OutputFolder.lock(out):
                for name in ("checkpoint", "validation"):
                    allowed = [files(JOB), *([files(parent)] if parent else [])]
                    if parent or (out / name).exists():
                        assert contents(out / name) in allowed, f"{name} after dying at operation {n}"
            # Without the record the job is complete: in place, the same command would go on with the next slice.
            if died and ((out / ".job" / "record.json").exists() or (out / "result.json").exists() is False):
                with OutputFolder.lock(out) as output:
                    run_job(output, self.job_now(out, parent), in_place=in_place)
            for name in ("checkpoint", "validation"):
                assert contents(out / name) == files(JOB)
            assert list(out.glob(".job/*")) == [], f"left unfinished after dying at operation {n}"
            # Dying while the ending is noted costs the note (the next start writes it) and may leave its beginning.
            left = {str(path) for path in snapshot(out) if "result.json" not in path.name}
            assert left == {f"{name}/{file}" for name in ("checkpoint", "validation") for file in files(JOB)}
            if not died:
                assert n > 30
                return
        raise AssertionError("the job never came to its end")

    @staticmethod
    def job_now(out, parent):
        """A start in place computes its parent from what lies there."""
        if parent and contents(out / "checkpoint") == files(JOB):
            return AGAIN if parent.task_digest == JOB.task_digest else JobRecord(JOB.task_digest, "result of task")
        return JOB

    @staticmethod
    def attempt(out, n, monkeypatch, in_place):
        try:
            with OutputFolder.lock(out) as output, crash_at(n, monkeypatch):
                run_job(output, JOB, in_place=in_place)
        except Crash:
            return True
        return False

    def test_progress_survives_dying_while_it_is_replaced(self, tmp_path, monkeypatch):
        for n in range(50):
            out = tmp_path / str(n)
            with OutputFolder.lock(out) as output:
                output.claim(JOB, in_place=False, overwrite=False)
                output.save_progress(b"1")
                try:
                    with crash_at(n, monkeypatch):
                        output.save_progress(b"2")
                except Crash:
                    assert output.load_progress() in (b"1", b"2")
                else:
                    assert output.load_progress() == b"2" and n >= 3
                    return
        raise AssertionError("saving never came to its end")

    def test_an_old_ending_does_not_outlive_its_continuation(self, tmp_path):
        """Interrupted (result.json says so), continued, killed after publishing: the third start must not exit 0 beside
        a result.json that still says interrupted. Whoever finishes finds none and writes it."""
        with OutputFolder.lock(tmp_path) as output:
            output.claim(JOB, in_place=False, overwrite=False)
            output.save_progress(b"state")
            output.write_result({"status": "interrupted"})
        assert claim(tmp_path) is Claim.CONTINUES
        assert not (tmp_path / "result.json").exists()


class TestLock:
    def test_excludes_a_second_process_until_death(self, tmp_path):
        script = (
            "import sys, time; from pathlib import Path; from engine.output import OutputFolder\n"
            "with OutputFolder.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as holder:
            try:
                assert holder.stdout.readline() == "held\n"
                with pytest.raises(TemporaryError, match="another job is running") as caught:
                    claim(tmp_path)
                assert caught.value.code == 75
                assert list(tmp_path.iterdir()) == []
            finally:
                holder.send_signal(signal.SIGKILL)
        assert claim(tmp_path) is Claim.FRESH

    def test_is_released_at_the_end_and_after_an_error(self, tmp_path):
        with pytest.raises(KeyError), OutputFolder.lock(tmp_path):
            raise KeyError
        with OutputFolder.lock(tmp_path), pytest.raises(TemporaryError):
            claim(tmp_path)
        assert claim(tmp_path) is Claim.FRESH

    def test_makes_missing_folders(self, tmp_path):
        assert claim(tmp_path / "a" / "b") is Claim.FRESH

    @pytest.mark.parametrize("below", [".", "folder"])
    def test_a_file_in_its_way_is_an_output_error(self, tmp_path, below):
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot write to"):
            claim(tmp_path / "file" / below)

    def test_a_folder_that_cannot_be_written_is_found_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(OutputError, match="make it writable"):
            claim(tmp_path)

    def test_brings_back_a_result_that_was_moved_aside(self, tmp_path):
        put_result(tmp_path, OTHER)
        (tmp_path / ".job").mkdir()
        (tmp_path / "checkpoint").rename(tmp_path / ".job" / "checkpoint.replaced")
        with OutputFolder.lock(tmp_path) as output:
            assert contents(output.checkpoint) == files(OTHER)


class TestDisk:
    @pytest.mark.parametrize("action", ["claim", "progress", "publish", "result", "complete"])
    def test_a_full_disk_is_an_output_error_with_advice(self, tmp_path, monkeypatch, action):
        with OutputFolder.lock(tmp_path) as output:
            if action != "claim":
                output.claim(JOB, in_place=False, overwrite=False)
                output.save_progress(b"good")

            def full(*arguments):
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "fsync", full)
            monkeypatch.setattr(shutil, "rmtree", full if action == "complete" else shutil.rmtree)
            with pytest.raises(OutputError, match="the disk is full: free some space"):
                {
                    "claim": lambda: output.claim(JOB, in_place=False, overwrite=False),
                    "progress": lambda: output.save_progress(b"next"),
                    "publish": lambda: output.publish(output.checkpoint, files(JOB), last="manifest.json"),
                    "result": lambda: output.write_result({}),
                    "complete": output.complete,
                }[action]()
            assert not output.checkpoint.exists()
            if action in ("progress", "publish", "result"):
                assert output.load_progress() == b"good"

    def test_the_file_named_last_is_written_last(self, tmp_path, monkeypatch):
        written = []
        real = storage.write_new
        monkeypatch.setattr(
            storage, "write_new", lambda path, *a, **k: (written.append(path.name), real(path, *a, **k))
        )
        with OutputFolder.lock(tmp_path) as output:
            output.publish(output.checkpoint, {"last": b"", "a": b"", "b": b""}, last="last")
        assert written == ["a", "b", "last"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_a_root_containers_results_belong_to_the_folders_owner(self, tmp_path):
        os.chown(tmp_path, 12345, 23456)
        with OutputFolder.lock(tmp_path) as output:
            run_job(output, JOB)
            output.claim(OTHER, in_place=True, overwrite=False)
            output.save_progress(b"1")
        paths = list(tmp_path.rglob("*"))
        assert len(paths) > 8
        assert {(path.stat().st_uid, path.stat().st_gid) for path in paths} == {(12345, 23456)}


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
        output.keep("digest", b"data")
        output.publish(output.validation, {"inner/a": b"", "manifest.json": b""}, last="manifest.json")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in out.rglob("*")} == {(1234, 2345)}

"""The output folder: who may take it, and that nothing complete is lost wherever a job dies."""

import errno
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.errors import OutputError, TemporaryError
from engine.core.files import atomic_files
from engine.results.output.folder import Claim, JobRecord, OutputFolder
from tests.unit.core.files.test_atomic_files import Crash, contents, crash_at

JOB = JobRecord("task", "parent")
OTHER = JobRecord("other task", "parent")
AGAIN = JobRecord("task", "result of task")
"""The same task started again in place, after its result became the checkpoint."""
ROOT = Path(__file__).parents[4]


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
        (out / ".job" / "progress").write_bytes(atomic_files.seal(progress))


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def progress_of(output):
    """The saved bytes, or None."""
    with output.open_progress() as file:
        return None if file is None else file.read()


def claim(out, job=JOB, *, in_place=False, overwrite=False):
    with OutputFolder.lock(out) as output:
        return output.claim(job, in_place=in_place, overwrite=overwrite)


def run_job(output, job, *, in_place=False):
    """What `engine.job.run` does with the folder, with bytes in place of training."""
    if output.claim(job, in_place=in_place, overwrite=False) is Claim.FINISHED:
        return
    done = int(progress_of(output) or b"0")
    for step in range(done + 1, 3):
        output.save_progress([str(step).encode()])
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
    """A finished result as `engine.job.publish` leaves it, as far as it says whose it is."""
    (out / "checkpoint").mkdir(parents=True)
    manifest = {"task_digest": job.task_digest, "parent": job.parent, "global_step": step}
    manifest["dataset"] = {"rows": job.rows} if job.rows else {}
    state = {"world": job.invariants, "settings": {"validation": {"dataset": job.curve} if job.curve else {}}}
    (out / "checkpoint" / "manifest.json").write_text(json.dumps(manifest))
    (out / "checkpoint" / "state.json").write_text(json.dumps(state))


def put_interrupted(out, job):
    with OutputFolder.lock(out) as output:
        output.claim(job, in_place=False, overwrite=False)
        output.save_progress([b"exact"])


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
                output.save_progress([payload])
                assert progress_of(output) == payload

    def test_a_damaged_one_counts_as_none(self, tmp_path):
        put_unfinished(tmp_path, JOB)
        path = tmp_path / ".job" / "progress"
        path.write_bytes(path.read_bytes()[:-1])
        with OutputFolder.lock(tmp_path) as output:
            assert progress_of(output) is None


class TestCrashes:
    """A job that dies at any operation, and the same command again."""

    @pytest.mark.parametrize("can_exchange", [True, False])
    @pytest.mark.parametrize("kind", ["fresh", "in place", "same task in place"])
    def test_ends_the_same_and_loses_nothing(self, tmp_path, monkeypatch, can_exchange, kind):
        if not can_exchange:
            monkeypatch.setattr(atomic_files, "_exchange", lambda one, other: False)
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
            left = {str(path) for path in snapshot(out) if "result.json" not in path.name} - {".lock"}
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
                output.save_progress([b"1"])
                try:
                    with crash_at(n, monkeypatch):
                        output.save_progress([b"2"])
                except Crash:
                    assert progress_of(output) in (b"1", b"2")
                else:
                    assert progress_of(output) == b"2" and n >= 3
                    return
        raise AssertionError("saving never came to its end")

    def test_an_old_ending_does_not_outlive_its_continuation(self, tmp_path):
        """Interrupted (result.json says so), continued, killed after publishing: the third start must not exit 0 beside
        a result.json that still says interrupted. Whoever finishes finds none and writes it."""
        with OutputFolder.lock(tmp_path) as output:
            output.claim(JOB, in_place=False, overwrite=False)
            output.save_progress([b"state"])
            output.write_result({"status": "interrupted"})
        assert claim(tmp_path) is Claim.CONTINUES
        assert not (tmp_path / "result.json").exists()


class TestLock:
    def test_excludes_a_second_process_until_death(self, tmp_path):
        script = (
            "import sys, time; from pathlib import Path; from engine.results.output.folder import OutputFolder\n"
            "with OutputFolder.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as holder:
            try:
                assert holder.stdout.readline() == "held\n"
                with pytest.raises(TemporaryError, match="another job is running") as caught:
                    claim(tmp_path)
                assert caught.value.code == 75
                assert list(tmp_path.iterdir()) == [tmp_path / ".lock"]
            finally:
                holder.send_signal(signal.SIGKILL)
        assert list(tmp_path.iterdir()) == [tmp_path / ".lock"], "a kill leaves the file, and nothing that blocks"
        assert claim(tmp_path) is Claim.FRESH

    def test_stays_where_a_job_has_been_and_nowhere_else(self, tmp_path):
        def names():
            return sorted(path.name for path in tmp_path.iterdir())

        put_result(tmp_path, OTHER)
        with pytest.raises(OutputError):
            claim(tmp_path)
        assert claim(tmp_path, OTHER) is Claim.FINISHED
        assert names() == ["checkpoint", "validation"]
        assert claim(tmp_path, overwrite=True) is Claim.FRESH
        assert names() == [".job", ".lock", "checkpoint", "validation"]
        assert claim(tmp_path, overwrite=True) is Claim.FRESH and (tmp_path / ".lock").exists()

    @pytest.fixture
    def two_machines(self, tmp_path):
        """One folder, mounted twice: locks of files meet, those of folders do not, as by NFS."""
        if shutil.which("bindfs") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
            pytest.skip("there is no bindfs to mount a folder twice")
        (tmp_path / "server").mkdir()
        mounts = [tmp_path / "one", tmp_path / "other"]
        mounted = []
        try:
            for mount in mounts:
                mount.mkdir()
                command = ["bindfs", "--multithreaded", "--enable-lock-forwarding", tmp_path / "server", mount]
                if subprocess.run(command, check=False, capture_output=True).returncode:
                    pytest.skip("nothing can be mounted here")
                mounted.append(mount)
            yield mounts
        finally:
            for mount in mounted:
                subprocess.run(["umount", "--lazy", mount], check=True)

    def test_holds_on_two_machines(self, two_machines):
        descriptors = [os.open(mount, os.O_RDONLY | os.O_DIRECTORY) for mount in two_machines]
        for descriptor in descriptors:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # both hold it: that is no lock
        for descriptor in descriptors:
            os.close(descriptor)
        for one, other in (two_machines, reversed(two_machines)):
            with OutputFolder.lock(one), pytest.raises(TemporaryError, match="another job is running"):
                claim(other)
            assert claim(other) is Claim.FRESH

    @pytest.mark.parametrize("mode", [0o755, 0o775, 0o777])
    def test_is_a_file_that_whoever_may_write_there_can_lock(self, tmp_path, mode):
        """A job that was killed, as root perhaps, keeps nobody out."""
        tmp_path.chmod(mode)
        before = os.umask(0o077)
        try:
            with OutputFolder.lock(tmp_path):
                status = (tmp_path / ".lock").stat()
                assert stat.S_IMODE(status.st_mode) == mode & 0o666 and status.st_uid == tmp_path.stat().st_uid
        finally:
            os.umask(before)

    def test_one_that_is_let_go_while_it_is_opened_is_not_taken_for_held(self, tmp_path, monkeypatch):
        """The holder removes the file: whoever has opened it before has a lock of no name, and tries again."""
        real, removed = atomic_files.open_lock, []

        def overtaken(path, **options):
            descriptor = real(path, **options)
            if len(removed) < 3:
                removed.append(path)
                path.unlink()
                if len(removed) == 2:
                    path.write_text("")  # another job's
            return descriptor

        monkeypatch.setattr(atomic_files, "open_lock", overtaken)
        with OutputFolder.lock(tmp_path):
            assert len(removed) == 3
            monkeypatch.setattr(atomic_files, "open_lock", real)
            with pytest.raises(TemporaryError):
                claim(tmp_path)

    def test_many_that_come_and_go_hold_it_one_at_a_time(self, tmp_path):
        script = (
            "import sys, time; from pathlib import Path; from engine.results.output.folder import OutputFolder\n"
            "from engine.core.errors import TemporaryError\n"
            "root, taken, end = Path(sys.argv[1]), 0, time.monotonic() + 2\n"
            "while time.monotonic() < end:\n"
            "    try:\n"
            "        with OutputFolder.lock(root): (root / 'x').touch(exist_ok=False); (root / 'x').unlink()\n"
            "        taken += 1\n"
            "    except TemporaryError: pass\n"
            "print(taken)"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        holders = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(3)]
        taken = [int(holder.communicate()[0] or -1) for holder in holders]
        assert [holder.returncode for holder in holders] == [0, 0, 0] and min(taken) > 0, taken

    @pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
    def test_what_is_no_plain_file_is_named(self, tmp_path, kind):
        path = tmp_path / "out" / ".lock"
        path.parent.mkdir()
        {"link": lambda: path.symlink_to("nowhere"), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[kind]()
        with pytest.raises(OutputError, match=r"\.lock is not a plain file, as the job's own is: remove it"):
            claim(path.parent)
        assert os.path.lexists(path) and not (tmp_path / "out" / "nowhere").exists()

    def test_a_file_system_without_locks(self, tmp_path, monkeypatch):
        def refuse(descriptor, operation):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(OutputError, match="its file system has no locks: mount it with them"):
            claim(tmp_path)

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
        with pytest.raises(OutputError, match="file is a file, not a folder; remove it, or choose another folder"):
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
                output.save_progress([b"good"])

            def full(*arguments):
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "fsync", full)
            monkeypatch.setattr(shutil, "rmtree", full if action == "complete" else shutil.rmtree)
            with pytest.raises(OutputError, match="the disk is full: free some space"):
                {
                    "claim": lambda: output.claim(JOB, in_place=False, overwrite=False),
                    "progress": lambda: output.save_progress([b"next"]),
                    "publish": lambda: output.publish(output.checkpoint, files(JOB), last="manifest.json"),
                    "result": lambda: output.write_result({}),
                    "complete": output.complete,
                }[action]()
            assert not output.checkpoint.exists()
            if action in ("progress", "publish", "result"):
                assert progress_of(output) == b"good"

    def test_the_file_named_last_is_written_last(self, tmp_path, monkeypatch):
        written = []
        real = atomic_files.write_new
        monkeypatch.setattr(
            atomic_files, "write_new", lambda path, *a, **k: (written.append(path.name), real(path, *a, **k))
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
            output.save_progress([b"1"])
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
        output.add_step_file("digest", b"data")
        output.publish(output.validation, {"inner/a": b"", "manifest.json": b""}, last="manifest.json")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in out.rglob("*")} == {(1234, 2345)}


class TestStrangersLinks:
    """Whoever owns the output folder may have put links there, to files of whoever runs the job."""

    @pytest.mark.parametrize("name", ["checkpoint", "validation", ".job"])
    @pytest.mark.parametrize("target", ["nowhere", "folder", "file"])
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_link_where_the_job_has_a_folder(self, tmp_path, name, target, overwrite):
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("theirs")
        out = tmp_path / "out"
        out.mkdir()
        (out / name).symlink_to(tmp_path / target)
        with pytest.raises(OutputError, match=f"{name} is a link to {tmp_path / target}, where the job has a folder"):
            claim(out, overwrite=overwrite)
        assert list(out.iterdir()) == [out / name] and list((tmp_path / "folder").iterdir()) == []

    @pytest.mark.parametrize("name", ["checkpoint", "validation", ".job"])
    def test_a_file_where_the_job_has_a_folder(self, tmp_path, name):
        (tmp_path / name).write_text("theirs")
        with pytest.raises(OutputError, match=f"{name} is a file, where the job has a folder of its own: remove it"):
            claim(tmp_path)

    @pytest.mark.parametrize("kind", ["link", "link to nowhere", "second name"])
    def test_no_file_of_a_job_is_written_through_one(self, tmp_path, kind):
        theirs, out = tmp_path / "theirs", tmp_path / "out"
        theirs.write_text("theirs")
        theirs.chmod(0o600)
        out.mkdir()
        if os.geteuid() == 0:
            os.chown(out, 12345, 23456)
        names = ("result.json", "progress.jsonl", "report.html")
        put_unfinished(out, JOB)
        for path in [out / name for name in (*names, *(f".{name}.tmp" for name in names))]:
            {
                "link": lambda path: path.symlink_to(theirs),
                "link to nowhere": lambda path: path.symlink_to(tmp_path / "nowhere"),
                "second name": lambda path: path.hardlink_to(theirs),
            }[kind](path)
        with OutputFolder.lock(out) as output:
            assert output.claim(JOB, in_place=False, overwrite=False) is Claim.CONTINUES
            with os.fdopen(atomic_files.open_log(out / "progress.jsonl", owner=out), "a") as log:
                log.write("ours")
            output.write("report.html", b"ours")
            output.write_result({})
        assert theirs.read_text() == "theirs" and stat.S_IMODE(theirs.stat().st_mode) == 0o600
        assert theirs.stat().st_uid == os.geteuid() and not (tmp_path / "nowhere").exists()
        assert [(out / name).is_symlink() for name in names] == [False] * 3

    def test_what_is_read_is_not_read_through_one(self, tmp_path):
        """An endless file would take all memory."""
        put_unfinished(tmp_path, JOB)
        for name in ("progress", "record.json"):
            (tmp_path / ".job" / name).unlink()
            (tmp_path / ".job" / name).symlink_to("/dev/zero")
        (tmp_path / "result.json").symlink_to("/dev/zero")
        with OutputFolder.lock(tmp_path) as output:
            assert progress_of(output) is None
            assert not output.is_same_request("request") and not output.is_recorded_as_done("x")

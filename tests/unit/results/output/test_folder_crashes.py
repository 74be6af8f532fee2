"""A job that dies, a full disk or a stranger's link leaves the results whole."""

import errno
import os
import shutil
import stat

import pytest

from engine.core.errors import OutputError
from engine.core.files import atomic_files
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
    run_job,
    snapshot,
)
from tests.unit.core.files.test_atomic_files import Crash, contents, crash_at


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
                output.save_progress(b"1")
                try:
                    with crash_at(n, monkeypatch):
                        output.save_progress(b"2")
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
            output.save_progress(b"state")
            output.write_result({"status": "interrupted"})
        assert claim(tmp_path) is Claim.CONTINUES
        assert not (tmp_path / "result.json").exists()


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
            output.save_progress(b"1")
        paths = list(tmp_path.rglob("*"))
        assert len(paths) > 8
        assert {(path.stat().st_uid, path.stat().st_gid) for path in paths} == {(12345, 23456)}


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
        with pytest.raises(OutputError, match=f"{name} is a link to {tmp_path / target}, but the job needs a folder"):
            claim(out, overwrite=overwrite)
        assert list(out.iterdir()) == [out / name] and list((tmp_path / "folder").iterdir()) == []

    @pytest.mark.parametrize("name", ["checkpoint", "validation", ".job"])
    def test_a_file_where_the_job_has_a_folder(self, tmp_path, name):
        (tmp_path / name).write_text("theirs")
        with pytest.raises(OutputError, match=f"{name} is a file, but the job needs a folder there: remove it"):
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

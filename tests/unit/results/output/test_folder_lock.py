"""One job at a time in an output folder: processes, machines, strange file systems."""

import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.core.errors import OutputError, TemporaryError
from engine.core.files import atomic_files
from engine.results.output.folder import Claim, OutputFolder
from tests.support.output_folders import (
    OTHER,
    claim,
    files,
    put_result,
)
from tests.unit.core.files.test_atomic_files import contents

ROOT = Path(__file__).parents[4]


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

"""Becoming the output folder's owner: who that is, what is given to them, and what happens when it is not allowed."""

import errno
import os
import subprocess
import sys

import pytest

from engine import container
from engine.container import ENTRYPOINT, Owner, become, command_line, existing, find_owner, writable_places

ME = Owner(os.getuid(), os.getgid())
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


@pytest.fixture
def folders(tmp_path):
    """Root's empty output and cache folders, as Docker makes them, and a person's task."""
    made = {name: tmp_path / name for name in ("out", "task", "cache")}
    for folder in made.values():
        folder.mkdir()
    os.chown(made["task"], 1000, 1001)
    return made


def owner_of(folder):
    return Owner(folder.stat().st_uid, folder.stat().st_gid)


@pytest.mark.parametrize(
    "argv, command",
    [
        ([], [sys.executable, str(ENTRYPOINT)]),
        (["--plan", "--task", "-"], [sys.executable, str(ENTRYPOINT), "--plan", "--task", "-"]),
        (["python", "-m", "engine.prefetch"], ["python", "-m", "engine.prefetch"]),
    ],
)
def test_flags_are_the_jobs_and_anything_else_is_a_command(argv, command):
    assert command_line(argv) == command


def test_the_nearest_folder_that_is_there(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path
    (tmp_path / "file").touch()
    assert existing(tmp_path / "file") == tmp_path


@needs_root
class TestFindOwner:
    def test_a_persons_folder_is_theirs(self, folders):
        os.chown(folders["out"], 23, 24)
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == (23, 24)
        assert owner_of(folders["cache"]) == (23, 24) and owner_of(folders["task"]) == (1000, 1001)

    def test_an_empty_folder_of_roots_is_for_the_tasks_owner(self, folders):
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == (1000, 1001)
        assert owner_of(folders["out"]) == owner_of(folders["cache"]) == (1000, 1001)

    def test_what_root_has_filled_stays_roots(self, folders):
        (folders["out"] / "file").touch()
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == (0, 0)
        assert owner_of(folders["out"]) == owner_of(folders["cache"]) == (0, 0)

    def test_a_cache_in_use_is_not_given_away(self, folders):
        (folders["cache"] / "file").touch()
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == (1000, 1001)
        assert owner_of(folders["cache"]) == (0, 0)

    def test_without_a_task_folder_it_is_root(self, folders, tmp_path):
        assert find_owner(folders["out"], tmp_path / "nothing", tmp_path / "nothing") == (0, 0)

    @pytest.mark.parametrize("code", [errno.EPERM, errno.EROFS])
    def test_what_cannot_be_given_away_stays(self, folders, monkeypatch, code):
        def refuse(*_, **options):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "chown", refuse)
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == (0, 0)
        assert owner_of(folders["out"]) == (0, 0)
        monkeypatch.undo()
        os.chown(folders["out"], 23, 24)
        monkeypatch.setattr(os, "chown", refuse)
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == (23, 24)
        assert owner_of(folders["cache"]) == (0, 0)

    @pytest.mark.parametrize("closed", ["out", "task", "cache"])
    def test_what_root_may_not_look_into_stays(self, folders, monkeypatch, closed):
        def refuse(folder):
            if folder == folders[closed]:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return True

        monkeypatch.setattr(container, "_is_empty", refuse)
        expected = (0, 0) if closed == "out" else (1000, 1001)
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == expected
        assert owner_of(folders[closed]) == ((1000, 1001) if closed == "task" else (0, 0))


def test_an_output_folder_that_is_gone_ends_with_the_outputs_code(monkeypatch, capsys, tmp_path):
    def gone(_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(container.os, "geteuid", lambda: 0)
    monkeypatch.setattr(container, "_owner", gone)
    assert container.main([]) == 7
    assert capsys.readouterr().err.startswith(f"error: whose {tmp_path} is cannot be told (Stale file handle)")


@needs_root
def test_becoming_somebody_gives_everything_of_roots_up():
    script = (
        "import os; from pathlib import Path; from engine.container import Owner, become; os.setgroups([0, 44]);"
        "become(Owner(1000, 1001), Path('/out')); print(os.getresuid(), os.getresgid(), os.getgroups());"
        "os.setuid(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ENTRYPOINT.parent, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "(1000, 1000, 1000) (1001, 1001, 1001) [44]"
    assert done.returncode == 1 and "PermissionError" in done.stderr, "there is no way back"


def test_without_capabilities_it_goes_on_and_says_what_to_do(monkeypatch, capsys, tmp_path):
    def refuse(*_, **options):
        raise PermissionError

    monkeypatch.setattr(os, "setgroups", refuse)
    become(Owner(1000, 1001), tmp_path)
    assert "--user 1000:1001" in capsys.readouterr().err
    assert (os.getuid(), os.getgid()) == ME


def test_scratch_folders_are_where_something_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "SHARED_MEMORY", str(tmp_path))
    assert writable_places({"HOME": str(tmp_path)}) == {}
    assert writable_places({"HOME": "/nonexistent"}) == {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    monkeypatch.setattr(container, "SHARED_MEMORY", "/nonexistent")
    assert writable_places({"HOME": "/nonexistent"}) == {}


def test_a_command_that_is_not_there(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert container.main(["no-such-command"]) == 127
    assert "no such command" in capsys.readouterr().err


def test_a_link_in_the_output_folder_makes_nobody_root(tmp_path):
    """The owner of what holds the link counts, not that of what it leads to."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to("/")
    assert existing(tmp_path / "out" / "link" / "etc") == tmp_path / "out"


def test_a_flag_without_its_value_is_left_to_the_job(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(container.os, "execv", lambda *given: started.append(given))
    monkeypatch.setattr(container.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    assert container.main(["--output-dir"]) == container.NOT_FOUND
    assert started[0][1][-1] == "--output-dir"

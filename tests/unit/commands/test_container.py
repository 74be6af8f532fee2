"""Who the job runs as: the output folder's owner, what is given to them, what happens when that is not allowed."""

import errno
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from engine.commands import container
from engine.commands.container import (
    IMAGE_USER,
    Owner,
    choose_user,
    command_line,
    existing,
    find_owner,
    root_is_a_person,
    writable_places,
)
from engine.core.errors import OutputError, TaskError
from engine.core.process.startup import ENTRYPOINT, ROOT

_NO_PRCTL = SimpleNamespace(CDLL=lambda _: SimpleNamespace(prctl=lambda *_: 0))
"""The tests' own process is to keep its rights."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


@pytest.fixture(autouse=True)
def _signals():
    """What the program does about signals is undone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
        ([], ["python", ENTRYPOINT]),
        (["--plan", "--task", "-"], ["python", ENTRYPOINT, "--plan", "--task", "-"]),
        (["prefetch", "--prune"], ["python", ENTRYPOINT, "prefetch", "--prune"]),
        (["python", "-V"], ["python", "-V"]),
    ],
)
def test_flags_are_the_jobs_and_anything_else_is_a_command(argv, command):
    assert command_line(argv) == command


class Replaced(Exception):
    """Stands for the end of a process that is replaced by another program."""


def test_what_rises_is_itself_and_needs_no_third_party_packages(monkeypatch):
    """`RISE` is the distribution's Python, which sees no virtual environment."""

    def replace(program, line):
        raise Replaced(program, line)

    monkeypatch.setattr(container, "may_rise", lambda: True)
    monkeypatch.setattr(container.os, "execv", replace)
    with pytest.raises(Replaced) as replaced:
        container.main(["echo", "started"], os.environ)
    program, line = replaced.value.args
    assert program == container.RISE and line[0] == str(container.RISE)
    line = [sys.executable, *line[1:]]
    env = os.environ | ({"RUN_AS_ROOT": "1"} if os.geteuid() == 0 else {})
    started = subprocess.run(line, check=False, capture_output=True, text=True, env=env)
    assert (started.returncode, started.stdout) == (0, "started\n"), started.stderr


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
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == IMAGE_USER
        assert owner_of(folders["out"]) == (0, 0)

    def test_a_cache_in_use_is_not_given_away(self, folders):
        (folders["cache"] / "file").touch()
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == (1000, 1001)
        assert owner_of(folders["cache"]) == (0, 0)

    def test_without_a_task_folder_or_with_roots_it_is_the_images_user(self, folders, tmp_path):
        os.chown(folders["task"], 0, 0)
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == IMAGE_USER
        assert owner_of(folders["out"]) == owner_of(folders["cache"]) == IMAGE_USER
        os.chown(folders["out"], 0, 0)
        assert find_owner(folders["out"], tmp_path / "nothing", tmp_path / "nothing") == IMAGE_USER
        assert owner_of(folders["out"]) == IMAGE_USER

    def test_where_root_is_a_person_the_folder_is_theirs(self, folders, monkeypatch):
        """Rootless Docker and Podman: root in the container is whoever started it."""
        monkeypatch.setattr(container, "root_is_a_person", lambda: True)
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == (0, 0)
        assert owner_of(folders["out"]) == (0, 0)

    @pytest.mark.parametrize("code", [errno.EPERM, errno.EROFS])
    def test_what_cannot_be_given_away_stays(self, folders, monkeypatch, code):
        def refuse(*_, **options):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "chown", refuse)
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == IMAGE_USER
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
        expected = IMAGE_USER if closed == "out" else (1000, 1001)
        assert find_owner(folders["out"], folders["task"], folders["cache"]) == expected
        assert owner_of(folders[closed]) == ((1000, 1001) if closed == "task" else (0, 0))


def test_an_output_folder_that_is_gone_ends_with_the_outputs_code(monkeypatch, capsys, tmp_path):
    def gone(_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(container.os, "geteuid", lambda: 0)
    monkeypatch.setattr(container, "_owner", gone)
    assert container.main([], os.environ) == 7
    assert capsys.readouterr().err.startswith(f"error: the owner of {tmp_path} cannot be found (Stale file handle)")


@needs_root
def test_becoming_somebody_gives_everything_of_roots_up():
    script = (
        "import os; from engine.commands.container import Owner, become; os.setgroups([0, 44, 10001]);"
        "become(Owner(1000, 1001)); print(os.getresuid(), os.getresgid(), os.getgroups());"
        "os.setuid(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1000, 1000, 1000) (1001, 1001, 1001) [44]"
    assert done.returncode == 1 and "PermissionError" in done.stderr, "there is no way back"


@pytest.fixture
def powerless(monkeypatch):
    """Nobody can be become, as with `--cap-drop ALL`. What was tried instead."""
    tried = []

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setgroups", refuse)
    for name in ("setresuid", "setresgid"):
        monkeypatch.setattr(os, name, lambda *ids: tried.append(ids))
    return tried


class TestChooseUser:
    def as_user(self, monkeypatch, *, real, effective):
        monkeypatch.setattr(os, "getuid", lambda: real)
        monkeypatch.setattr(os, "geteuid", lambda: effective)

    def test_root_without_capabilities_is_refused(self, monkeypatch, tmp_path, powerless):
        self.as_user(monkeypatch, real=0, effective=0)
        monkeypatch.setattr(container, "find_owner", lambda *_: Owner(1000, 1001))
        with pytest.raises(OutputError, match="--user 1000:1001, or set RUN_AS_ROOT=1"):
            choose_user(tmp_path, wants_root=False)
        assert powerless == []

    def test_the_images_user_stays_without_capabilities(self, monkeypatch, tmp_path, powerless):
        self.as_user(monkeypatch, real=10001, effective=0)
        monkeypatch.setattr(os, "getgid", lambda: 10001)
        monkeypatch.setattr(container, "find_owner", lambda *_: Owner(1000, 1001))
        choose_user(tmp_path, wants_root=False)
        assert powerless == [(10001,) * 3, (10001,) * 3]

    def test_root_where_it_is_asked_for(self, monkeypatch, tmp_path):
        self.as_user(monkeypatch, real=0, effective=0)
        monkeypatch.setattr(container, "become", lambda owner: pytest.fail("it is root already"))
        choose_user(tmp_path, wants_root=True)

    def test_root_asked_for_in_vain(self, monkeypatch, tmp_path):
        self.as_user(monkeypatch, real=10001, effective=10001)
        with pytest.raises(TaskError, match="start it with --user 0"):
            choose_user(tmp_path, wants_root=True)

    @pytest.mark.parametrize("owner, advice", [(1000, "start with --user 1000:1000"), (0, "chown 4242:")])
    def test_a_folder_that_this_user_may_not_write_to(self, monkeypatch, capsys, tmp_path, owner, advice):
        self.as_user(monkeypatch, real=4242, effective=4242)
        monkeypatch.setattr(os, "access", lambda *_: False)
        monkeypatch.setattr(container, "_owner", lambda _: Owner(owner, owner))
        choose_user(tmp_path, wants_root=False)
        assert advice in capsys.readouterr().err


def test_ones_own_folder_that_is_read_only_is_nobody_elses(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(container, "_owner", lambda _: Owner(4242, 4242))
    choose_user(tmp_path, wants_root=False)
    assert capsys.readouterr().err == ""


def test_root_asked_for_in_other_words_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.setenv("RUN_AS_ROOT", "yes")
    monkeypatch.setattr(container, "write_termination_message", lambda _: None)
    assert container.main([], os.environ) == 2
    assert "RUN_AS_ROOT is 'yes'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, person", [("0 0 4294967295", False), ("0 1000 1", True), ("0 100000 65536", True), ("1000 0 1", False)]
)
def test_whether_root_is_somebody_else_outside(tmp_path, line, person):
    (tmp_path / "uid_map").write_text(f"{line:>33}\n1 100000 65536\n")
    assert root_is_a_person(tmp_path / "uid_map") is person


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_came_before_python_ends_it(signum):
    script = "import os, sys; from engine.commands import container; os.kill(os.getpid(), int(sys.argv[1])); "
    script += "container._end_on_signals()"
    line = ["env", "--block-signal=TERM,INT", sys.executable, "-c", script, str(int(signum))]
    assert subprocess.run(line, cwd=ROOT, check=False).returncode == 128 + signum


def test_nothing_that_is_started_can_gain_rights():
    line = [sys.executable, ENTRYPOINT, "container-start", "grep", "NoNewPrivs", "/proc/self/status"]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | ({"RUN_AS_ROOT": "1"} if os.geteuid() == 0 else {}),
    )  # fmt: skip
    assert done.stdout.split() == ["NoNewPrivs:", "1"], done.stderr


def test_scratch_folders_are_where_something_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "SHARED_MEMORY", str(tmp_path))
    assert writable_places({"HOME": str(tmp_path)}) == {}
    assert writable_places({"HOME": "/nonexistent"}) == {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    monkeypatch.setattr(container, "SHARED_MEMORY", "/nonexistent")
    assert writable_places({"HOME": "/nonexistent"}) == {}


def test_a_command_that_is_not_there(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(container, "ctypes", _NO_PRCTL)
    assert container.main(["no-such-command"], os.environ) == 127
    assert "not a command in this image" in capsys.readouterr().err


def test_a_link_in_the_output_folder_makes_nobody_root(tmp_path):
    """The owner of what holds the link counts, not that of what it leads to."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to("/")
    assert existing(tmp_path / "out" / "link" / "etc") == tmp_path / "out"


def test_a_flag_without_its_value_is_left_to_the_job(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(container.os, "execv", lambda *given: started.append(given))
    monkeypatch.setattr(container.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(container, "ctypes", _NO_PRCTL)
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    assert container.main(["--output-dir"], os.environ) == container.NOT_FOUND
    assert started[0][1][-1] == "--output-dir"

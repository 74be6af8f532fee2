"""Start the container: choose the user, then replace this process by the job, another program or a command.

    entrypoint.py container-start [arguments of entrypoint.py | command and its arguments]

Results belong to the owner of the output folder, so the job runs as that user, and as root only if RUN_AS_ROOT=1 asks
for it. docs/container.md lists the cases, and explains why the image starts as `IMAGE_USER`, which first gets root's
rights through `RISE` and then gives them up for good. No torch, no third-party package.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from engine.commands.registry import CONTAINER_START, PROGRAMS
from engine.core.errors import JobError, OutputError, TaskError
from engine.core.process.environment import flag_variable
from engine.core.process.startup import ENTRYPOINT
from engine.core.process.termination import write_termination_message
from engine.task.settings import DEFAULT_CACHE, DEFAULT_TASK, output_dir, salvage_output_dir

INIT: Final = ("tini", "-g", "--")
"""Process 1 of a container: it passes signals to the workers too (`-g`), and removes zombies."""
RISE: Final = Path("/usr/local/libexec/sd-lora-task-rise")
"""A copy of Python that belongs to root, has the set-user-ID bit, and may be run by `IMAGE_USER`'s group alone."""
SHARED_MEMORY: Final = "/dev/shm"
NOT_FOUND: Final = 127

_PR_SET_NO_NEW_PRIVS: Final = 38


class Owner(NamedTuple):
    """A user and a group, by number; they may have no names."""

    uid: int
    gid: int


IMAGE_USER: Final = Owner(10001, 10001)
"""The image's own user (`USER` in the Dockerfile): not root, so that Kubernetes' `runAsNonRoot` accepts it."""


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Become the user that the job runs as, and replace this process by the job. Return only on failure.

    Returns:
        127, as a shell, if the command does not exist; a JobError's code if no user to run the job as was found.
    """
    if may_rise():  # False in the process that this starts
        os.execv(RISE, [str(RISE), "-I", "-S", ENTRYPOINT, CONTAINER_START, *argv])
    _end_on_signals()
    try:
        output = existing(output_dir(_flags(argv), environment))
        choose_user(output, wants_root=flag_variable(environment, "RUN_AS_ROOT"))
    except JobError as error:
        say(f"error: {error}")
        write_termination_message(str(error))
        return error.code
    # Nothing that the job starts can gain rights by a set-user-ID program, RISE included.
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.environ.update(writable_places(environment))
    command = command_line(argv)
    program = shutil.which(command[0])
    if program is not None:
        init = shutil.which(INIT[0]) if os.getpid() == 1 else None
        os.execv(init or program, [*(INIT if init else ()), program, *command[1:]])
    say(f"{command[0]}: not a command in this image, nor a program of the job (see --help)")
    return NOT_FOUND


def command_line(argv: Sequence[str]) -> list[str]:
    """Return the command: flags and names of programs belong to entrypoint.py; anything else is a command itself."""
    if argv and not argv[0].startswith("-") and argv[0] not in PROGRAMS:
        return list(argv)
    return ["python", ENTRYPOINT, *argv]


def may_rise() -> bool:
    """Return whether to use `RISE`: as the image's own user, where set-user-ID programs work.

    Only as process 1: another process 1 (`docker run --init`) could not send signals to a process of another user.
    """
    if os.getpid() != 1 or os.geteuid() != IMAGE_USER.uid or not os.access(RISE, os.X_OK):
        return False
    status = Path("/proc/self/status").read_text()
    return re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE) is None


def choose_user(output: Path, *, wants_root: bool) -> None:
    """Become the user that the job runs as, for good.

    Raises:
        OutputError: it would have to be root, cannot change to the right user, or cannot find out who that is.
        TaskError: RUN_AS_ROOT=1, but the container was not started as root.
    """
    if os.geteuid() == 0:
        _leave_root(output, wants_root=wants_root)
    if wants_root and os.geteuid() != 0:
        raise TaskError(
            f"RUN_AS_ROOT=1, but the container runs as user {os.geteuid()}, who cannot become root here; "
            "start it with --user 0, or unset RUN_AS_ROOT"
        )
    _say_if_closed(output)


def _leave_root(output: Path, *, wants_root: bool) -> None:
    try:
        owner = Owner(0, 0) if wants_root else find_owner(output, DEFAULT_TASK.parent, DEFAULT_CACHE)
    except OSError as error:  # a mount whose server is gone, or which denies root access
        raise OutputError(
            f"the owner of {output} cannot be found ({error.strerror}); mount it again, or start with --user"
        ) from None
    if owner.uid == os.getuid() == 0:
        return
    try:
        become(owner)
    except PermissionError:  # root without capabilities
        _stay(owner)


def _stay(owner: Owner) -> None:
    """Remain the user that the container was started as, unless that is root."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        raise OutputError(
            f"the container was started as root, without the capabilities to become user {owner.uid}, who is to run "
            f"the job; start it with --user {owner.uid}:{owner.gid}, or set RUN_AS_ROOT=1 to run the task as root"
        )
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _say_if_closed(output: Path) -> None:
    """Print how to start the container if this user may not write to the output folder; the job itself refuses it."""
    if os.access(output, os.W_OK | os.X_OK):
        return
    try:
        owner = _owner(output)
    except OSError:
        return  # the job reports what is wrong with it
    if owner.uid == os.geteuid():
        return  # for example mounted read-only: no other user could write there either
    if owner.uid == 0:
        advice = f"give it to them: chown {os.geteuid()}:{os.getegid()}"
    else:
        advice = f"start with --user {owner.uid}:{owner.gid}"
    who = f"{output} belongs to user {owner.uid}, but the job runs as user {os.geteuid()} and may not write there"
    say(f"{who}; {advice}")


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flag that names the output folder; None where it is wrong, which the job itself reports."""
    try:
        return salvage_output_dir(argv)
    except TaskError:
        return argparse.Namespace(output_dir=None)


def existing(folder: Path) -> Path:
    """Return `folder`, or the nearest folder above it that exists and whose path has no links.

    With links, the owner of the output folder could link to a folder of root's, and make the job run as root.
    """
    candidates = (folder.absolute(), *folder.absolute().parents)
    return next(path for path in candidates if _is_folder(path) and path.resolve() == path)


def _is_folder(path: Path) -> bool:
    """Return whether this is a folder; False also where it cannot be read, where `Path.is_dir` raises."""
    return os.path.isdir(path)  # noqa: PTH112


def find_owner(output: Path, *others: Path) -> Owner:
    """Return the owner of the results: the output folder's owner, or if that is root, a user who is not.

    Docker creates a missing folder as root, empty. Then the owner is that of the task's folder (the first of `others`),
    else `IMAGE_USER`, and the empty folders are given to that user. A folder that root has filled stays root's, and
    `IMAGE_USER` tries to use it. If root is an ordinary user outside (rootless Docker and Podman), its folder counts
    like any other user's.
    """
    owner = _owner(output)
    task, *caches = others
    if owner.uid == 0 and not root_is_a_person():
        of_task = _owner(task) if _is_folder(task) else IMAGE_USER
        heir = IMAGE_USER if of_task.uid == 0 else of_task
        owner = heir if _gives(output, heir) else IMAGE_USER
    if owner.uid != 0:
        for folder in caches:
            _gives(folder, owner)
    return owner


def root_is_a_person(uid_map: Path = Path("/proc/self/uid_map")) -> bool:
    """Return whether this container's root is another user outside, as with rootless Docker and Podman."""
    inside, outside, _ = map(int, uid_map.read_text().split()[:3])
    return inside == 0 and outside != 0


def become(owner: Owner) -> None:
    """Become another user for good, with the groups of `--group-add`.

    Raises:
        PermissionError: the capabilities to do so are missing (`--cap-drop ALL`).
    """
    os.setgroups([group for group in os.getgroups() if group not in (0, IMAGE_USER.gid)])
    os.setresgid(owner.gid, owner.gid, owner.gid)
    os.setresuid(owner.uid, owner.uid, owner.uid)


def writable_places(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables for writable scratch folders, none if HOME is writable: the root may be mounted read-only."""
    home = environment.get("HOME", "/")
    if is_writable(home):
        return {}
    return {"HOME": SHARED_MEMORY, "TMPDIR": SHARED_MEMORY} if is_writable(SHARED_MEMORY) else {}


def is_writable(folder: str) -> bool:
    """Return whether files can be created in a folder; False if it does not exist or is read-only."""
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)  # noqa: PTH112


def say(line: str) -> None:
    """Print a line for a person."""
    print(line, file=sys.stderr, flush=True)


def _end_on_signals() -> None:
    """End on SIGTERM and SIGINT, which the kernel does not deliver to a process 1 without handlers.

    The image starts with them blocked, so one that was sent while Python was starting is still pending here.
    """
    stops = (signal.SIGTERM, signal.SIGINT)
    for signum in stops:
        signal.signal(signum, lambda number, _: os._exit(128 + number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)


def _owner(folder: Path) -> Owner:
    status = folder.stat()
    return Owner(status.st_uid, status.st_gid)


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _gives(folder: Path, owner: Owner) -> bool:
    """Give an empty folder of root's to another user. Return False if there is none or that is not permitted."""
    if owner.uid == 0 or not _is_folder(folder):
        return False
    try:
        if _owner(folder).uid != 0 or not _is_empty(folder):
            return False
        os.chown(folder, *owner, follow_symlinks=False)
    except OSError:  # no capability, read-only, or closed to root
        return False
    return True

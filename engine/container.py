"""What the image starts: become the owner of the output folder, then run the job, or the command that is given.

    python -m engine.container [flags of entrypoint.py | command and its arguments]

A container that starts as root would leave root's files in a person's folder, and one that starts as somebody else
cannot write into the folder that Docker made for it as root. So the image starts as root, and this becomes the owner of
the output folder before any of the job's code runs. Started as anybody else (`--user`, Kubernetes' `runAsUser`), it
changes nothing. No torch, no third-party package.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from .errors import OutputError, TaskError
from .settings import DEFAULT_CACHE, DEFAULT_TASK, output_dir, salvage_output_dir

ENTRYPOINT: Final = Path(__file__).resolve().parents[1] / "entrypoint.py"
SHARED_MEMORY: Final = "/dev/shm"
NOT_FOUND: Final = 127


class Owner(NamedTuple):
    """A user and a group, by number: they need no names."""

    uid: int
    gid: int


def main(argv: Sequence[str]) -> int:
    """Replace this process by the job. Comes back only with a code for what kept it from that.

    It is 127, a shell's, for a command that is not there, and OutputError's where nobody can be found to be.
    """
    command = command_line(argv)
    output = existing(output_dir(_flags(argv), os.environ))
    if os.geteuid() == 0:
        try:
            owner = find_owner(output, DEFAULT_TASK.parent, DEFAULT_CACHE)
        except OSError as error:  # a mount whose server is gone, or keeps root out
            say(f"error: whose {output} is cannot be told ({error.strerror}); mount it anew, or start with --user")
            return OutputError.code
        if owner.uid != 0:
            become(owner, output)
    os.environ.update(writable_places(os.environ))
    program = shutil.which(command[0])
    if program is not None:
        os.execv(program, command)
    say(f"{command[0]}: no such command in this image; a flag of the job starts with -")
    return NOT_FOUND


def command_line(argv: Sequence[str]) -> list[str]:
    """Flags alone are the job's; anything else is a command of its own."""
    if argv and not argv[0].startswith("-"):
        return list(argv)
    return [sys.executable, str(ENTRYPOINT), *argv]


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    """The flags that name the output folder; none where they are wrong, which the job itself will say."""
    try:
        return salvage_output_dir(argv)
    except TaskError:
        return argparse.Namespace(output_dir=None)


def existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there and is reached through no link.

    Whoever owns the output folder could put a link to root's there, and have the job run as root.
    """
    candidates = (folder.absolute(), *folder.absolute().parents)
    return next(path for path in candidates if _is_folder(path) and path.resolve() == path)


def _is_folder(path: Path) -> bool:
    """False also for one that may not be looked at, where `Path.is_dir` raises."""
    return os.path.isdir(path)  # noqa: PTH112


def find_owner(output: Path, *others: Path) -> Owner:
    """Whose the results are: the output folder's owner.

    A folder that does not exist is made by Docker, as root and empty. Then the results are for whoever owns the task's
    folder (the first of `others`), and the empty folders become theirs.
    """
    owner = _owner(output)
    task, *caches = others
    if owner.uid == 0 and _is_folder(task) and _gives(output, _owner(task)):
        owner = _owner(task)
    if owner.uid != 0:
        for folder in caches:
            _gives(folder, owner)
    return owner


def become(owner: Owner, output: Path) -> None:
    """Give up root for good. Without the capabilities to do so (`--cap-drop ALL`), say so and go on as root."""
    try:
        os.setgroups([group for group in os.getgroups() if group != 0])
        os.setgid(owner.gid)
        os.setuid(owner.uid)
    except PermissionError:
        say(
            f"{output} belongs to user {owner.uid}, whom root may not become without capabilities; "
            f"going on as root: start with --user {owner.uid}:{owner.gid} instead"
        )


def writable_places(environment: Mapping[str, str]) -> dict[str, str]:
    """What libraries write beside the results, where it can be written: also with a read-only root, for any user."""
    home = environment.get("HOME", "/")
    if is_writable(home):
        return {}
    return {"HOME": SHARED_MEMORY, "TMPDIR": SHARED_MEMORY} if is_writable(SHARED_MEMORY) else {}


def is_writable(folder: str) -> bool:
    """Whether files can be made in a folder; False for one that is not there, or read-only."""
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)  # noqa: PTH112


def say(line: str) -> None:
    """A line for a person."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _owner(folder: Path) -> Owner:
    status = folder.stat()
    return Owner(status.st_uid, status.st_gid)


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _gives(folder: Path, owner: Owner) -> bool:
    """Give an empty folder of root's to somebody else, if there is one and it may be done."""
    if owner.uid == 0 or not _is_folder(folder):
        return False
    try:
        if _owner(folder).uid != 0 or not _is_empty(folder):
            return False
        os.chown(folder, *owner, follow_symlinks=False)
    except OSError:  # without the capability, read-only, or closed to root too: it stays as it is
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

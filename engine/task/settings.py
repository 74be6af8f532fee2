"""Read flags and environment variables. A flag overrides a variable; an empty variable counts as not set."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn, cast, get_args

from engine import __version__
from engine.core.errors import TaskError
from engine.core.files import atomic_files
from engine.core.limits import Limits
from engine.core.process.environment import Place, int_variable, read_place
from engine.task.push import Push, read_push
from engine.task.push import add_flags as add_push_flags

DEFAULT_TASK: Final = Path("/task/task.json")
DEFAULT_OUTPUT: Final = Path("/out")
DEFAULT_CACHE: Final = Path("/cache")
CACHED: Final = ("datasets", "models", "encoded")
"""Names of folders in a cache folder. A read-only cache folder that has one of them is used for reading."""

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a job that are not part of its task."""

    task_bytes: bytes
    task_source: str
    """The task's name in messages: a path, `TASK_JSON` or `standard input`."""
    task_folder: Path
    """The folder where relative paths in the task start."""
    output_dir: Path
    checkpoint: Path | None
    cache_dir: Path
    device: Device
    overwrite: bool
    plan: bool
    cpu_threads: int
    save_seconds: float
    """Seconds between two saves of the progress."""
    encoded_cache_bytes: int
    """Limit on the bytes of encoded images and captions in the cache."""
    limits: Limits
    trackers: tuple[str, ...]
    """The names of the tracking services that the operator chose."""
    place: Place
    """The rank of this process among the job's processes."""
    processes: int | None
    """The number of processes to start; None starts one for each GPU."""
    push: Push | None
    """The repository to which results are pushed; None if none is."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TaskError(f"{message} (see --help)")


_DESCRIPTION: Final = "Fine-tune Stable Diffusion as one task file says, write checkpoint/ and validation/, exit."


def flag_parser(prog: str = "entrypoint.py", description: str = _DESCRIPTION) -> argparse.ArgumentParser:
    """Return a parser of the job's flags that raises TaskError. Other programs may add flags of their own."""
    parser = _Parser(
        prog=prog,
        description=description,
        epilog="In brackets: the equivalent variable, and the default. docs/contract.md lists the exit codes.",
        allow_abbrev=False,  # an abbreviation may become ambiguous with a later flag
    )
    parser.add_argument("--task", metavar="PATH", help="the task file, - for standard input [TASK_JSON, TASK_FILE]")
    parser.add_argument("--output-dir", metavar="DIR", help=f"the folder for results [OUTPUT_DIR, {DEFAULT_OUTPUT}]")
    parser.add_argument("--checkpoint", metavar="DIR", help="the checkpoint/ to continue from [CHECKPOINT_DIR]")
    parser.add_argument("--cache-dir", metavar="DIR", help="the folder for downloads and encoded images [CACHE_DIR]")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="the device to train on [DEVICE, cuda]")
    parser.add_argument("--overwrite", action="store_true", help="replace another job's result in the output folder")
    parser.add_argument(
        "--trackers",
        metavar="LIST",
        help="whom to log to: of tensorboard, wandb, mlflow, kubeflow, with commas [TRACKERS, none]",
    )
    parser.add_argument("--plan", action="store_true", help="check everything, print what would run, train nothing")
    add_push_flags(parser)
    parser.add_argument("--version", action="version", version=f"sd-lora-task {__version__}")
    return parser


def read_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of the job.

    Raises:
        TaskError: an unknown flag or an invalid value.
    """
    return flag_parser().parse_args(argv)


def salvage_output_dir(argv: Sequence[str]) -> argparse.Namespace:
    """Return the --output-dir of a command line with other errors, so that the failure can be recorded there."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output-dir")
    return parser.parse_known_args(argv)[0]


def output_dir(flags: argparse.Namespace, environment: Mapping[str, str]) -> Path:
    """Return the output folder. It is read first, so that every later failure can be recorded there."""
    return Path(flags.output_dir or environment.get("OUTPUT_DIR") or DEFAULT_OUTPUT).absolute()


def read_settings(flags: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Read all settings, and the task's bytes from a file, TASK_JSON or standard input.

    Raises:
        TaskError: an invalid value, or a task that cannot be read.
    """
    if sys.flags.optimize > 1:
        raise TaskError(
            "Python runs without docstrings (PYTHONOPTIMIZE=2 or -OO), which the libraries need: "
            "unset PYTHONOPTIMIZE or set it to 1"
        )
    env = {name: value for name, value in environment.items() if value}
    place = read_place(env)
    if place.world_size > 1 and flags.task == "-":
        raise TaskError("several processes cannot share standard input; give the task by TASK_JSON or as a file")
    device = flags.device or env.get("DEVICE", "cuda")
    if device not in get_args(Device):
        raise TaskError(f"DEVICE is {device!r}: expected cuda or cpu")
    task_bytes, task_source, task_folder = _read_task(flags.task, env)
    checkpoint = flags.checkpoint or env.get("CHECKPOINT_DIR")
    return Settings(
        task_bytes=task_bytes,
        task_source=task_source,
        task_folder=task_folder,
        output_dir=output_dir(flags, environment),
        checkpoint=Path(checkpoint).absolute() if checkpoint else None,
        cache_dir=cache_dir(flags, env),
        device=cast(Device, device),
        overwrite=flags.overwrite,
        plan=flags.plan,
        cpu_threads=int_variable(env, "CPU_THREADS", default=1, least=1),
        save_seconds=int_variable(env, "SAVE_SECONDS", default=30, least=0),
        encoded_cache_bytes=int_variable(env, "MAX_ENCODED_BYTES", default=20 << 30, least=0),
        limits=Limits.from_environment(env),
        trackers=_names(flags.trackers if flags.trackers is not None else env.get("TRACKERS", "")),
        place=place,
        processes=int_variable(env, "PROCESSES", default=1, least=1) if "PROCESSES" in env else None,
        push=read_push(flags, env),
    )


def _names(text: str) -> tuple[str, ...]:
    """Return the different names in a list with commas."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _read_task(flag: str | None, env: Mapping[str, str]) -> tuple[bytes, str, Path]:
    """Return the task's bytes, its name in messages, and the folder where relative paths start."""
    if flag == "-":
        return sys.stdin.buffer.read(), "standard input", Path.cwd()
    if flag is None and "TASK_JSON" in env:
        return os.fsencode(env["TASK_JSON"]), "TASK_JSON", Path.cwd()
    path = Path(flag or env.get("TASK_FILE") or DEFAULT_TASK).absolute()
    try:
        return path.read_bytes(), str(path), path.parent
    except OSError as error:
        raise TaskError(f"the task file {path} cannot be read: {_why_unreadable(path, error)}") from None


def _why_unreadable(path: Path, error: OSError) -> str:
    """Return why a task file cannot be read, and what to do."""
    advice = "name the task file with --task or TASK_FILE, or put its text into TASK_JSON"
    if isinstance(error, IsADirectoryError):
        mounted = "; Docker creates one if the file to mount does not exist" if path == DEFAULT_TASK else ""
        return f"it is a folder{mounted}: {advice}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{atomic_files.obstacle(path) or 'there is no such file'}; {advice}"
    return f"{error.strerror}; {advice}"


def is_read_only(folder: Path) -> bool:
    """Return whether a folder can be read but not written, not even by root, as on a read-only file system."""
    return os.access(folder, os.R_OK | os.X_OK) and not os.access(folder, os.W_OK)


def cache_dir(flags: argparse.Namespace, environment: Mapping[str, str]) -> Path:
    """Return the cache folder, which need not exist.

    Raises:
        TaskError: its path leads to something that is not a folder.
    """
    env = {name: value for name, value in environment.items() if value}
    if chosen := flags.cache_dir or env.get("CACHE_DIR"):
        folder = Path(chosen).absolute()
        if found := atomic_files.obstacle(folder):
            raise TaskError(f"the cache folder cannot be used: {found}; remove it, or set CACHE_DIR to another folder")
        return folder
    if DEFAULT_CACHE.is_dir() and os.access(DEFAULT_CACHE, os.W_OK):
        return DEFAULT_CACHE
    if is_read_only(DEFAULT_CACHE) and any(os.access(DEFAULT_CACHE / name, os.R_OK | os.X_OK) for name in CACHED):
        return DEFAULT_CACHE
    return Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "/tmp"), ".cache")) / "sd-lora-task"

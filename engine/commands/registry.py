"""The programs besides the training, each chosen by the first word of the command line. No third-party package."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, cast

from engine.results.trackers.service import SERVICE_PROCESS

Main = Callable[[Sequence[str], Mapping[str, str]], int]
"""The main function of a program: takes the command line after its name and the environment, returns the exit code."""


class Program(NamedTuple):
    """A row of `PROGRAMS`."""

    module: str
    """The module that has its `main`. It is imported when the program is started."""
    summary: str


TRAIN: Final = "engine.commands.train"
CONTAINER_START: Final = "container-start"
PROGRAMS: Final[Mapping[str, Program]] = {
    "verify": Program("engine.commands.verify.main", "check a result by training it again and comparing all bytes"),
    "compare": Program("engine.commands.compare", "say how far apart two results are"),
    "prefetch": Program("engine.commands.prefetch", "download what a task needs into the cache, or prune the cache"),
    "caption": Program("engine.commands.caption.main", "write captions beside the images of a folder"),
    "chain": Program("engine.commands.forked.chain", "run a training as a chain of tasks until it is finished"),
    "worker": Program("engine.commands.forked.worker", "run the tasks of a folder as they appear in it"),
    "export": Program("engine.commands.export.main", "make a whole model or a LoRA file for other programs"),
    "torchrun": Program(
        "engine.training.distributed.torchrun", "torch's launcher for several machines, with the job's exit code"
    ),
    SERVICE_PROCESS: Program(
        "engine.results.trackers.service_process", "follow a training for one tracking service; the job starts it"
    ),
    CONTAINER_START: Program(
        "engine.commands.container", "the image's start: choose the user, then run a program or a command"
    ),
}


def split(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the module of the program that a command line starts, and the arguments for it."""
    if argv and argv[0] in PROGRAMS:
        return PROGRAMS[argv[0]].module, argv[1:]
    return TRAIN, argv


def load(module: str) -> Main:
    """Import a program."""
    return cast(Main, importlib.import_module(module).main)


def overview() -> str:
    """Return the list of programs for `entrypoint.py --help`."""
    width = max(map(len, PROGRAMS)) + 2
    lines = [f"{name:<{width}}{program.summary}" for name, program in PROGRAMS.items()]
    return "other programs, chosen by the first word, each with its own --help:\n" + textwrap.indent(
        "\n".join(lines), "  "
    )

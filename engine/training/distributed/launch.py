"""Start one process for each GPU of this machine, by torch's own launcher, and return their exit code.

The processes share the task's own `gradient_accumulation_steps`, so the result has the bits of one GPU.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from engine.core.errors import Interrupted, JobError, OutputError, PeerError, TemporaryError
from engine.core.process.environment import EXIT_CODES, LAUNCHED, Place
from engine.core.process.gpus import num_gpus
from engine.core.process.signals import Stop, die_with_parent, pass_finish_on
from engine.core.process.startup import ENTRYPOINT
from engine.results.outcome import Outcome, recording_failure
from engine.results.output.folder import OutputFolder
from engine.task.settings import Settings
from engine.task.task import Task

SHUTDOWN_SECONDS: Final = 110
"""The time that the processes have for saving their progress after SIGTERM; a container has two minutes to stop."""

_LARGEST_VARIABLE: Final = 100_000
"""Upper bound in bytes for an environment variable; Linux allows 128 KiB."""

_INTERRUPTIONS: Final[list[BaseException]] = []
"""The signals that ended a launch in this process, as `keep_rendezvous` keeps them."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A job with several processes that is to be started by calling this object."""

    settings: Settings
    request: str
    """The job's `job.request_digest`."""
    processes: int

    def __call__(self, argv: Sequence[str], stop: Stop) -> int:
        """Start the processes, wait for them, and return the job's exit code.

        Raises:
            OutputError: there is no writable temporary folder.
            TemporaryError: the first process was killed.
            PeerError: another process ended, and the first one was hanging and had to be killed.
            Interrupted: by a signal, and the first process was killed before it could report that.
        """
        from engine.core.console import say

        say(f"starting {self.processes} processes, which share the gradient accumulation steps")
        with scratch() as folder:
            signum = _start(self.processes, _arguments(argv), self._environment(folder), folder)
            found = left_codes(folder)
            codes = [found.get(rank) for rank in range(self.processes)]
        # The first process is told how every other one ended, and reports the reason, unless it was killed.
        if codes[0] is None:
            stop.install()
            self._end(_reason(signum, codes))
        return codes[0]

    def _environment(self, folder: str) -> dict[str, str]:
        found = {LAUNCHED: "1", EXIT_CODES: folder}
        if self.settings.task_source == "standard input":  # it has been read and is empty now
            found["TASK_JSON"] = os.fsdecode(self.settings.task_bytes)
        return found

    def _end(self, error: JobError | Interrupted) -> NoReturn:
        """Write `result.json` in place of the first process, and raise the error."""
        outcome = Outcome()
        with OutputFolder.lock(self.settings.output_dir) as output, recording_failure(output, outcome):
            outcome.may_overwrite = self.settings.overwrite or output.is_same_request(self.request)
            raise error


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """Make a temporary folder, and remove it with its contents after the block.

    Raises:
        OutputError: there is no writable place for one.
    """
    try:
        folder = tempfile.mkdtemp(prefix="sd-lora-task-")
    except OSError:
        raise OutputError("no temporary folder is writable: mount one at /tmp, or set PROCESSES=1") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reason(signum: int, codes: Sequence[int | None]) -> JobError | Interrupted:
    """Return why the job ended, if its first process was killed: a signal, another process's reason, or the kill."""
    if signum:
        name = signal.Signals(signum).name
        return Interrupted(signum, f"stopped by {name}; the same command continues from the saved progress")
    for rank, code in enumerate(codes):
        if code and code != TemporaryError.code:
            kinds = {kind.code: kind.kind for kind in JobError.__subclasses__() if hasattr(kind, "code")}
            message = f"process {rank} of the job ended with code {code}, see above"
            return PeerError(code, kinds.get(code, "bug"), message, origin=rank)
    return TemporaryError("the first process of the job was killed; run the same command again")


def launch_of(settings: Settings, task: Task, request: str) -> Launch | None:
    """Return the launch of several processes for this task; None if this process is one of them, or one is enough.

    Their number divides the accumulation steps, and is at most `PROCESSES`, or the number of GPUs if that is not set.
    """
    if settings.place != Place() or "WORLD_SIZE" in os.environ:
        return None
    if settings.task_source == "standard input" and len(settings.task_bytes) > _LARGEST_VARIABLE:
        return None  # it could not be passed on; one process gives the same bits
    gpus = num_gpus() if settings.device == "cuda" else None
    processes = num_processes(settings, task, gpus=gpus)
    return Launch(settings, request, processes) if processes > 1 else None


def num_processes(settings: Settings, task: Task, *, gpus: int | None) -> int:
    """Return how many processes train this task if no launcher starts them; `gpus` is None on a CPU."""
    available = settings.processes or 1 if gpus is None else min(settings.processes or gpus, gpus)
    return largest_divisor(task.train_args.gradient_accumulation_steps, available)


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`; 1 if there is none."""
    return next((divisor for divisor in range(min(number, limit), 1, -1) if number % divisor == 0), 1)


def _arguments(argv: Sequence[str]) -> list[str]:
    """Return the flags for the processes: they get a task from standard input as TASK_JSON."""
    flags = list(argv)
    for index, flag in enumerate(flags):
        if flag == "--task=-":
            return flags[:index] + flags[index + 1 :]
        if flag == "--task" and flags[index + 1 : index + 2] == ["-"]:
            return flags[:index] + flags[index + 2 :]
    return flags


def _start(processes: int, arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> int:
    """Run the processes until they end; return the signal that this process received meanwhile, or 0."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher would print tables about what the first process reports in one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.update(environment)
    pass_finish_on()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="job",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=SHUTDOWN_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    try:
        elastic_launch(config, sys.executable)(ENTRYPOINT, *arguments)
    except ChildFailedError:
        return 0
    except SignalException as error:
        keep_rendezvous(error)
        return int(error.sigval)
    return 0


def keep_rendezvous(error: BaseException) -> None:
    """Keep the rendezvous of an interrupted launch until this process ends, by the traceback that refers to it.

    After a signal torch leaves the thread running that sends the rendezvous' heartbeats. That thread refers to the
    rendezvous for the length of each heartbeat. If its reference were the last one, the thread would delete the
    rendezvous, which joins the thread: "RuntimeError: cannot join current thread", with a traceback in the job's log.
    """
    _INTERRUPTIONS.append(error)


def follow_launcher(environment: Mapping[str, str]) -> None:
    """Let the kernel kill this process when its launcher ends, if the launcher is this program's."""
    if EXIT_CODES in environment:
        die_with_parent()


def leave_code(environment: Mapping[str, str], code: int) -> None:
    """Write the exit code to a file for the launcher, if it is this program's: torch's does not pass codes on."""
    if EXIT_CODES in environment and environment.get("RANK"):
        Path(environment[EXIT_CODES], environment["RANK"]).write_text(str(code))


def left_codes(folder: str) -> dict[int, int]:
    """Return the exit codes of this machine's processes by rank; a killed process has none."""
    ranks = {int(path.name): path.read_text() for path in Path(folder).iterdir() if path.name.isdecimal()}
    return {rank: int(text) for rank, text in sorted(ranks.items()) if text.isdecimal()}

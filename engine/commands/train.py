"""Train one task, from flags and environment to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from engine.commands import registry
from engine.commands.program import fail
from engine.core.console import Phases, choose_format, introduce, keep_silent, say_traceback
from engine.core.errors import Interrupted, JobError, PeerError, TaskError
from engine.core.process.environment import Place, read_place
from engine.core.process.gpus import require_gpu
from engine.core.process.signals import Stop
from engine.results.host import expected_device
from engine.results.outcome import Outcome, exit_code, recording_failure
from engine.results.output.folder import PROGRESS_LOG, OutputFolder
from engine.results.output.mounts import require_mount
from engine.results.progress_log import ProgressLog
from engine.task.settings import Settings, flag_parser, output_dir, read_settings, salvage_output_dir
from engine.training.distributed.group import connected
from engine.training.distributed.launch import Launch, follow_launcher, launch_of, leave_code
from engine.training.distributed.processes import Processes

_HASHING_SECONDS: Final = 0.2
"""The time for hashing the base model's files, or finding their digests in the cache, before anything is imported."""


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the job and return its exit code."""
    code = _main(argv, environment)
    leave_code(environment, code)
    return code


def _main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    stop = Stop()
    stop.install()
    quiet_libraries()
    place = Place()
    try:
        choose_format(environment)  # first, since errors in the others are printed in this format
        flags = _read_flags(argv, environment)
        place = read_place(environment)
        if not place.is_first:
            keep_silent()
        if flags.plan:
            _plan(flags, environment, place)
            return 0
        follow_launcher(environment)
        launch = _run(flags, environment, place, stop)
        return launch(argv, stop) if launch else 0
    except (JobError, Interrupted) as error:
        return _fail(error, place)
    except Exception as error:
        say_traceback()
        return _fail(error, place)


def _read_flags(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """Parse the command line. A wrong flag is recorded in the output folder, like any failure, except with `--plan`.

    Raises:
        TaskError: a word that is not a program, an unknown flag or an invalid value.
    """
    if argv and not argv[0].startswith("-"):
        names = ", ".join(registry.PROGRAMS)
        raise TaskError(f"{argv[0]!r} is not a program: expected one of {names}, or only flags, to train (see --help)")
    parser = flag_parser()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"{textwrap.fill(parser.epilog or '', 100)}\n\n{registry.overview()}"
    try:
        return parser.parse_args(argv)
    except TaskError as error:
        if "--plan" in argv:
            raise
        folder = output_dir(salvage_output_dir(argv), environment)
        with OutputFolder.lock(folder) as output, recording_failure(output, Outcome()):
            raise error


def _plan(flags: argparse.Namespace, environment: Mapping[str, str], place: Place) -> None:
    from engine.commands.plan import print_plan

    print_plan(read_settings(flags, environment))
    if place.is_first:
        require_mount(output_dir(flags, environment), environment)


def _run(flags: argparse.Namespace, environment: Mapping[str, str], place: Place, stop: Stop) -> Launch | None:
    """Run the job as one of its processes, or return the launch of several processes, with the output folder unlocked.

    docs/architecture.md explains what each of the contexts does with a failure.
    """
    outcome = Outcome()
    if place.is_first:
        introduce(outcome.introduction)
    with (
        connected(place, stop) as processes,
        _output(output_dir(flags, environment), outcome, place, environment) as output,
        processes.translating_peer_errors(),
        ProgressLog(output.root / PROGRESS_LOG, step=lambda: outcome.global_step) as log,
    ):
        return _train(read_settings(flags, environment), output, stop, outcome, processes=processes, log=log)


@contextlib.contextmanager
def _output(folder: Path, outcome: Outcome, place: Place, environment: Mapping[str, str]) -> Iterator[OutputFolder]:
    """Yield the output folder. The job's first process locks it and records failures in it; others leave it alone."""
    if not place.is_first:
        yield OutputFolder(folder)
        return
    require_mount(folder, environment)
    with OutputFolder.lock(folder) as output, recording_failure(output, outcome):
        yield output


def _train(
    settings: Settings, output: OutputFolder, stop: Stop, outcome: Outcome, *, processes: Processes, log: ProgressLog
) -> Launch | None:
    """Run the task. What is refused or done already ends before torch is imported, which takes seconds."""
    from engine.core.files.file_hashes import FileDigests
    from engine.job.job import request_digest
    from engine.job.opening import open_job
    from engine.job.prepare import is_in_place, parent_folder, read_task
    from engine.models.components.locating import hash_ahead

    outcome.device = expected_device(settings.device)
    outcome.may_overwrite = settings.overwrite or is_in_place(settings.checkpoint, settings.output_dir)
    task = read_task(settings)
    if settings.device == "cuda":
        require_gpu()
    parent = parent_folder(settings, task)
    request = request_digest(task, parent)
    in_place = is_in_place(parent, settings.output_dir)
    outcome.may_overwrite |= in_place or output.is_same_request(request)
    if processes.is_first:
        outcome.clock.watchers.append(log.phase)
        log.begin(may_write=output.is_free_for(request, in_place=in_place))
    with outcome.clock.phase("start"):
        launch = launch_of(settings, task, request)
        if launch is not None:
            log.hand_on()
            return launch
        digests = FileDigests(settings.cache_dir)
        if processes.is_first:  # the others use its hashes from the cache
            hash_ahead(task.model, digests)
    phases = Phases()
    outcome.clock.watchers.append(phases.say)
    if not digests.are_ready(seconds=_HASHING_SECONDS):  # large files: they are hashed while the libraries are imported
        _import_libraries(outcome, phases)
    opened = open_job(settings, task, output, stop, outcome, processes=processes, digests=digests)
    if opened is None:
        return None
    _import_libraries(outcome, phases)
    from engine.job.run import run

    run(opened, digests=digests, log=log)
    return None


def _import_libraries(outcome: Outcome, phases: Phases) -> None:
    """Import what needs torch, if that is not done yet."""
    with outcome.clock.phase("start"), importing():
        phases.say("start")
        import engine.job.run
        import engine.models.parts.vae  # noqa: F401 - imports what most families need


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without the garbage collector, and permanently exempt the imported objects from it.

    The libraries make millions of objects that live as long as the process; scanning them repeatedly would take a fifth
    of the time of their import.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def quiet_libraries() -> None:
    """Suppress libraries' advice that only developers of this program can follow."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _fail(error: BaseException, place: Place) -> int:
    """Print why the job ends, once: in its first process or, if that was killed, in its launcher or the next one."""
    is_next = place.rank == 1 and not place.shares_task
    if place.is_first or (is_next and isinstance(error, PeerError) and error.origin == 0 and error.was_killed):
        return fail(error)
    return exit_code(error)

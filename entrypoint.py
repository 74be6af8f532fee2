"""Train one task: argv and environment in, an exit code out. README.md lists both."""

import os
import sys

if __name__ == "__main__":  # before anything else is imported; PYTHONSAFEPATH leaves this folder off the path
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from engine.core.process.startup import prepare_process

    prepare_process()

import argparse
import contextlib
import gc
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from engine.core.console import choose_format, introduce, keep_silent, say, say_error, say_traceback
from engine.core.errors import Interrupted, JobError, PeerError, TaskError
from engine.core.process.environment import Place, read_place
from engine.core.process.signals import Stop
from engine.core.process.termination import write_termination_message
from engine.results.host import expected_device
from engine.results.outcome import Outcome, describe, exit_code, exit_kind, recording_failure
from engine.results.output.folder import PROGRESS_LOG, OutputFolder
from engine.results.output.mounts import require_mount
from engine.results.trackers.jsonl import ProgressLog
from engine.task.settings import Settings, output_dir, read_flags, read_settings, salvage_output_dir
from engine.training.distributed.group import Processes, connected
from engine.training.distributed.launch import Launch, follow_launcher, launch_of, leave_code


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the job and return its exit code."""
    stop = Stop()
    stop.install()
    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale: a name in it must not end the job
    place = Place()
    try:
        choose_format(environment)  # first: what is wrong with the others is said in it
        flags = _read_flags(argv, environment)
        place = read_place(environment)
        if not place.is_first:
            keep_silent()
        if flags.plan:
            print_plan(read_settings(flags, environment))
            if place.is_first:
                require_mount(output_dir(flags, environment), environment)
            return 0
        follow_launcher(environment)
        launch = _run(flags, environment, place, stop)
        return launch(argv, stop) if launch else 0
    except (JobError, Interrupted) as error:
        return _fail(error, place)
    except Exception as error:
        say_traceback()
        return _fail(error, place)


def _run(flags: argparse.Namespace, environment: Mapping[str, str], place: Place, stop: Stop) -> Launch | None:
    """Run the job, as one of its processes; or say how to start several that do, leaving the output folder to them.

    docs/architecture.md says what each of these contexts does with a failure.
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
        return train(read_settings(flags, environment), output, stop, outcome, processes=processes, log=log)


@contextlib.contextmanager
def _output(folder: Path, outcome: Outcome, place: Place, environment: Mapping[str, str]) -> Iterator[OutputFolder]:
    """The output folder: locked and told of failures in the job's first process, not touched in the others."""
    if not place.is_first:
        yield OutputFolder(folder)
        return
    require_mount(folder, environment)
    with OutputFolder.lock(folder) as output, recording_failure(output, outcome):
        yield output


def train(
    settings: Settings, output: OutputFolder, stop: Stop, outcome: Outcome, *, processes: Processes, log: ProgressLog
) -> Launch | None:
    """Run the task; one that is refused is refused before torch is imported, which takes seconds."""
    from engine.commands.imports import import_transformers, importing
    from engine.core.files.file_hashes import FileDigests
    from engine.job.job import request_digest
    from engine.job.prepare import is_in_place, parent_folder, read_task
    from engine.models.base_model import hash_ahead

    outcome.device = expected_device(settings.device)
    outcome.may_overwrite = settings.overwrite or is_in_place(settings.checkpoint, settings.output_dir)
    task = read_task(settings)
    parent = parent_folder(settings, task)
    request = request_digest(task, parent)
    in_place = is_in_place(parent, settings.output_dir)
    outcome.may_overwrite |= in_place or output.is_same_request(request)
    if processes.is_first:
        outcome.clock.watchers.append(log.phase)
        log.begin(may_write=output.is_free_for(request, in_place=in_place))
    with outcome.clock.phase("start"), importing():
        launch = launch_of(settings, task, request)
        if launch is not None:
            log.hand_on()
            return launch
        digests = FileDigests(settings.cache_dir)
        if processes.is_first:  # the others find its notes
            hash_ahead(task.model, digests)
        import_transformers()
        import engine.models.parts.vae  # noqa: F401 - imports what most families need
        from engine.job.run import run

    run(settings, task, output, stop, outcome, processes=processes, digests=digests, log=log)
    return None


def print_plan(settings: Settings) -> None:
    """Check everything that can be checked without training, and print what would run."""
    from engine.job import memory
    from engine.job.advice import disk_space
    from engine.job.advice.audit import audit
    from engine.job.advice.describe import describe as describe_job
    from engine.job.precheck import check_device, check_memory, check_method, check_output
    from engine.job.prepare import prepare, read_task, recorded
    from engine.results.output.contents import OutputContents
    from engine.training.distributed.launch import num_processes

    task = read_task(settings)
    job = prepare(settings, task, weights=False, say=say, before=recorded(settings, task))
    if not settings.place.is_first:
        return
    # How much a GPU has is not known without torch.
    available = memory.available_bytes() if settings.device == "cpu" else None
    share = num_processes(settings, job.task, gpus=None)
    if available is not None:
        # Each process has its share; nobody knows how many a launcher has put on this machine, so it counts all.
        available //= max(settings.place.world_size, share)
    predicted = memory.describe(job.base, job.task, device=settings.device, available=available)
    lines = (
        describe_job(job)
        + predicted
        + disk_space.describe(job)
        + check_device(settings)
        + check_method(job)
        + audit(job)
    )
    print("\n".join(lines), flush=True)
    check_output(job, OutputContents(settings.output_dir), overwrite=settings.overwrite)
    check_memory(job, settings.device, available=available, num_processes=share)


def _read_flags(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """The command line; a wrong one is recorded in the output folder, as every failure is, unless it only plans."""
    try:
        return read_flags(argv)
    except TaskError as error:
        if "--plan" in argv:
            raise
        folder = output_dir(salvage_output_dir(argv), environment)
        with OutputFolder.lock(folder) as output, recording_failure(output, Outcome()):
            raise error


def _leave(code: int) -> NoReturn:
    """End the process without looking for garbage once more among all that torch and its friends are: a second."""
    gc.freeze()
    sys.exit(code)


def _quiet_libraries() -> None:
    """Keep advice that only this program's developers can follow off an operator's screen."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _fail(error: BaseException, place: Place) -> int:
    """Say why the job ends, once: in the first of its processes; where that was killed, in its launcher or the next."""
    is_next = place.rank == 1 and not place.shares_task
    if place.is_first or (is_next and isinstance(error, PeerError) and error.origin == 0 and error.was_killed):
        message = describe(error)
        say_error(message, code=exit_code(error), kind=exit_kind(error))
        write_termination_message(message)
    return exit_code(error)


if __name__ == "__main__":
    leave_code(os.environ, code := main(sys.argv[1:], os.environ))
    _leave(code)

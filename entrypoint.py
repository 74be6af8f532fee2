"""Train one task: argv and environment in, an exit code out. README.md lists both."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from engine.environment import Place, read_place
from engine.errors import Interrupted, JobError, PeerError, TaskError
from engine.mounts import require_mount
from engine.outcome import Outcome, describe, exit_code, recording_failure, write_termination_message
from engine.output import OutputFolder
from engine.processes.distributed import Processes, connected
from engine.processes.launch import Launch, follow_launcher, launch_of, leave_code
from engine.settings import Settings, output_dir, read_flags, read_settings, salvage_output_dir
from engine.signals import Stop


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the job and return its exit code."""
    stop = Stop()
    stop.install()
    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale: a name in it must not end the job
    place = Place()
    try:
        flags = _read_flags(argv, environment)
        place = read_place(environment)
        if not place.is_first:
            from engine.progress import keep_silent

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
        traceback.print_exc()
        return _fail(error, place)


def _run(flags: argparse.Namespace, environment: Mapping[str, str], place: Place, stop: Stop) -> Launch | None:
    """Run the job, as one of its processes; or say how to start several that do, leaving the output folder to them."""
    outcome = Outcome()
    with (
        connected(place, stop) as processes,
        _output(output_dir(flags, environment), outcome, place, environment) as output,
        processes.knowing_why(),
    ):
        return train(read_settings(flags, environment), output, stop, outcome, processes)


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
    settings: Settings, output: OutputFolder, stop: Stop, outcome: Outcome, processes: Processes
) -> Launch | None:
    """Run the task; one that is refused is refused before torch is imported, which takes seconds."""
    from engine.digests import FileDigests
    from engine.imports import import_transformers, importing
    from engine.job import request_digest
    from engine.model import hash_ahead
    from engine.prepare import is_in_place, parent_folder, read_task

    outcome.may_overwrite = settings.overwrite or is_in_place(settings.checkpoint, settings.output_dir)
    task = read_task(settings)
    parent = parent_folder(settings, task)
    request = request_digest(task, parent)
    outcome.may_overwrite |= is_in_place(parent, settings.output_dir) or output.is_asked_by(request)
    with outcome.clock.phase("start"), importing():
        launch = launch_of(settings, task, request)
        if launch is not None:
            return launch
        digests = FileDigests(settings.cache_dir)
        if processes.is_first:  # the others find its notes
            hash_ahead(task.model, digests)
        import_transformers()
        import engine.families.latent_diffusion  # noqa: F401 - no family does without: here it is imported like the rest
        from engine.run import run

    run(settings, task, output, stop, outcome, processes=processes, digests=digests)
    return None


def print_plan(settings: Settings) -> None:
    """Check everything that can be checked without training, and print what would run."""
    from engine import memory
    from engine.audit import audit
    from engine.describe import describe as describe_job
    from engine.precheck import check_adapter, check_output
    from engine.prepare import prepare, read_task
    from engine.processes.launch import num_processes
    from engine.progress import say

    job = prepare(settings, read_task(settings), weights=False, report=say)
    if not settings.place.is_first:
        return
    # How much a GPU has is not known without torch.
    available = memory.available_bytes() if settings.device == "cpu" else None
    if available is not None:
        # Each process has its share; nobody knows how many a launcher has put on this machine, so it counts all.
        available //= max(settings.place.world_size, num_processes(settings, job.task, gpus=None))
    predicted = memory.describe(job.base, job.task, device=settings.device, available=available)
    lines = describe_job(job) + predicted + check_adapter(job) + audit(job)
    with contextlib.suppress(BrokenPipeError):  # whoever reads may have read enough
        print("\n".join(lines), flush=True)
    check_output(job, OutputFolder(settings.output_dir), overwrite=settings.overwrite)


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
        print(f"error: {message}", file=sys.stderr, flush=True)
        write_termination_message(message)
    return exit_code(error)


if __name__ == "__main__":
    leave_code(os.environ, code := main(sys.argv[1:], os.environ))
    _leave(code)

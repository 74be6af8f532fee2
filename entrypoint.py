"""Train one task: argv and environment in, an exit code out. README.md lists both."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence

from engine.errors import Interrupted, JobError, TaskError
from engine.outcome import Outcome, describe, exit_code, recording_failure, write_termination_message
from engine.output import OutputFolder
from engine.settings import Settings, output_dir, read_flags, read_settings, salvage_output_dir
from engine.signals import Stop


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the job and return its exit code."""
    stop = Stop()
    stop.install()
    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale: a name in it must not end the job
    try:
        flags = _read_flags(argv, environment)
        if flags.plan:
            print_plan(read_settings(flags, environment))
            return 0
        outcome = Outcome()
        with OutputFolder.lock(output_dir(flags, environment)) as output, recording_failure(output, outcome):
            train(read_settings(flags, environment), output, stop, outcome)
    except (JobError, Interrupted) as error:
        return _fail(error)
    except Exception as error:
        traceback.print_exc()
        return _fail(error)
    return 0


def train(settings: Settings, output: OutputFolder, stop: Stop, outcome: Outcome) -> None:
    """Run the task; one that is refused is refused before torch is imported, which takes seconds."""
    from engine.prepare import is_in_place, parent_folder, read_task, request_digest

    outcome.may_overwrite = settings.overwrite or is_in_place(settings.checkpoint, settings.output_dir)
    task = read_task(settings)
    parent = parent_folder(settings, task)
    outcome.may_overwrite |= is_in_place(parent, settings.output_dir) or output.is_asked_by(
        request_digest(task, parent)
    )
    with outcome.clock.phase("start"):
        from engine.run import run

    run(settings, task, output, stop, outcome)


def print_plan(settings: Settings) -> None:
    """Check everything that can be checked without training, and print what would run."""
    from engine.prepare import describe as describe_job
    from engine.prepare import prepare, read_task
    from engine.progress import say

    lines = describe_job(prepare(settings, read_task(settings), weights=False, report=say))
    with contextlib.suppress(BrokenPipeError):  # whoever reads may have read enough
        print("\n".join(lines), flush=True)


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


def _quiet_libraries() -> None:
    """Keep advice that only this program's developers can follow off an operator's screen."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _fail(error: BaseException) -> int:
    message = describe(error)
    print(f"error: {message}", file=sys.stderr, flush=True)
    write_termination_message(message)
    return exit_code(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))

"""Fill the cache with what a task needs, ahead of time, so that the job itself runs without a network.

    python -m engine.prefetch --task task.json [any flag of entrypoint.py]

Task and cache folders are found as the job finds them (`--task`, `TASK_JSON`, `TASK_FILE`, …), and all is checked as
the job would check it. Afterwards the job runs with `HF_HUB_OFFLINE=1` and without a network. No torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from .addresses import public
from .errors import Interrupted, JobError
from .job import Job
from .outcome import describe, exit_code, exit_kind
from .prepare import prepare, read_task
from .progress import choose_format, say, say_error, say_traceback
from .quoting import plural
from .settings import read_flags, read_settings
from .signals import Stop

DESCRIPTION = "Download a task's base model and dataset into the cache, check them, train nothing, exit."


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Fill the cache; 0, or the exit code that the job would end with."""
    stop = Stop()
    stop.install()
    try:
        choose_format(environment)
        prefetch(argv, environment)
    except (JobError, Interrupted) as error:
        return _fail(error)
    except Exception as error:
        say_traceback()
        return _fail(error)
    return 0


def _fail(error: BaseException) -> int:
    say_error(describe(error), code=exit_code(error), kind=exit_kind(error))
    return exit_code(error)


def prefetch(argv: Sequence[str], environment: Mapping[str, str]) -> Job:
    """Download whatever is missing of the task's base model, with its weights, and of its dataset.

    A chain's later tasks are pinned to the commits of the first one's checkpoint: so is this, when it is given one.

    Raises:
        JobError: of the kind of whatever is missing or does not fit.
    """
    settings = read_settings(read_flags(argv, prog="python -m engine.prefetch", description=DESCRIPTION), environment)
    task = read_task(settings)
    job = prepare(settings, task, weights=True, report=say)
    say(f"base model: {job.base.identity} is in {job.base.folder}")
    source = public(task.dataset.name or str(task.dataset.url))
    say(f"dataset: {plural(job.dataset.num_images, f'image of {source} is', f'images of {source} are')} at hand")
    return job


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))

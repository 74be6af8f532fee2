"""Fill the cache with what a task needs, ahead of time, so that the job itself runs without a network.

    entrypoint.py prefetch --task task.json [any flag of the training]

Task and cache folders are found as the job finds them (`--task`, `TASK_JSON`, `TASK_FILE`, …), and all is checked as
the job would check it. Afterwards the job runs with `HF_HUB_OFFLINE=1` and without a network. No torch.

    MAX_CACHE_BYTES=… entrypoint.py prefetch --prune

removes from the cache what was used least recently, and needs no task.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.commands.program import program
from engine.core.console import say
from engine.core.errors import OutputError, TaskError
from engine.core.files.retention import prune
from engine.core.messages import plural
from engine.core.redact import public
from engine.job.job import Job
from engine.job.prepare import prepare, read_task
from engine.task.settings import cache_dir, flag_parser, is_read_only, max_cache_bytes, read_settings

DESCRIPTION = "Download a task's base model and dataset into the cache, check them, train nothing, exit."


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Fill the cache. Return 0, or the exit code that the job would end with."""
    parser = flag_parser("entrypoint.py prefetch", DESCRIPTION)
    parser.add_argument("--prune", action="store_true", help="keep the cache to MAX_CACHE_BYTES, and do nothing else")
    flags = parser.parse_args(argv)
    if flags.prune:
        prune_cache(flags, environment)
    else:
        prefetch(flags, environment)
    return 0


def prefetch(flags: argparse.Namespace, environment: Mapping[str, str]) -> Job:
    """Download what is missing of the task's base model, with its weights, and of its dataset.

    With a checkpoint to continue, both are pinned to the commits in its manifest, as in the job.

    Raises:
        JobError: what the job would be refused for.
    """
    settings = read_settings(flags, environment)
    task = read_task(settings)
    job = prepare(settings, task, weights=True, say=say)
    say(f"base model: {job.base.identity} is in {job.base.folder}")
    source = public(task.dataset.name or str(task.dataset.url))
    say(f"dataset: {plural(job.dataset.num_images, f'image of {source} is', f'images of {source} are')} at hand")
    if settings.max_cache_bytes is not None and not is_read_only(settings.cache_dir):
        _prune(settings.cache_dir, settings.max_cache_bytes)
    return job


def prune_cache(flags: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Remove from the cache what was used least recently, until it holds no more than MAX_CACHE_BYTES.

    Raises:
        TaskError: the variable is not set, or not a number.
        OutputError: something could not be removed.
    """
    most, folder = max_cache_bytes(environment), cache_dir(flags, environment)
    if most is None:
        raise TaskError("--prune needs MAX_CACHE_BYTES, what the cache may hold; 0 removes all that is not in use")
    if failures := _prune(folder, most):
        raise OutputError(f"{folder} cannot be pruned: {failures[0]}; run as the user whose files these are")


def _prune(folder: Path, max_bytes: int) -> list[str]:
    pruned = prune(folder, max_bytes)
    say(pruned.describe(folder, max_bytes))
    return pruned.failures

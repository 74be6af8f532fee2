"""Fill the cache with everything that a task needs, so that the job itself runs without a network.

    entrypoint.py prefetch --task task.json [any flag of the training]

Task and cache folders are found in the same way as by the job (`--task`, `TASK_JSON`, `TASK_FILE`, …), and everything
is checked in the same way. Afterwards the job runs with `HF_HUB_OFFLINE=1` and without a network. No torch.

    MAX_CACHE_BYTES=… entrypoint.py prefetch --prune

removes the least recently used entries from the cache, and needs no task.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.commands.program import program
from engine.core.console import say
from engine.core.errors import OutputError, TaskError
from engine.core.files.retention import prune
from engine.core.limits import Limits
from engine.core.messages import plural
from engine.core.redact import public
from engine.job.job import Job
from engine.job.prepare import prepare, read_task
from engine.task.settings import cache_dir, flag_parser, is_read_only, read_settings

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
    """Download the missing parts of the task's base model, with its weights, and of its dataset.

    With a checkpoint to continue, both are pinned to the commits in its manifest, as in the job.

    Raises:
        JobError: the job itself would be refused for the same reason.
    """
    settings = read_settings(flags, environment)
    task = read_task(settings)
    job = prepare(settings, task, weights=True, say=say)
    say(f"base model: {job.base.identity} is in {job.base.folder}")
    for name, found in job.base.elsewhere.items():
        say(f"{name}: {found.identity} is in {found.place.folder}")
    source = public(task.dataset.name or str(task.dataset.url))
    names = job.medium.names
    are = plural(job.dataset.num_images, f"{names.noun} of {source} is", f"{names.several} of {source} are")
    say(f"dataset: {are} in place")
    if settings.limits.max_cache_bytes is not None and not is_read_only(settings.cache_dir):
        _prune(settings.cache_dir, settings.limits.max_cache_bytes)
    return job


def prune_cache(flags: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Remove the least recently used entries from the cache, until it holds at most MAX_CACHE_BYTES.

    Raises:
        TaskError: the variable is not set, or not a number.
        OutputError: something could not be removed.
    """
    most, folder = Limits.from_environment(environment).max_cache_bytes, cache_dir(flags, environment)
    if most is None:
        raise TaskError(
            "--prune needs MAX_CACHE_BYTES, the bytes that the cache may hold; 0 removes all unused entries"
        )
    if failures := _prune(folder, most):
        raise OutputError(f"{folder} cannot be pruned: {failures[0]}; run as the user who owns these files")


def _prune(folder: Path, max_bytes: int) -> list[str]:
    pruned = prune(folder, max_bytes)
    say(pruned.describe(folder, max_bytes))
    return pruned.failures

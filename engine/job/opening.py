"""Prepare the job, and find whether anything is left to do, before torch is imported, which takes seconds."""

from __future__ import annotations

from engine.core.console import begin_log, say
from engine.core.files.file_hashes import FileDigests
from engine.core.files.retention import prune
from engine.core.process.signals import Stop
from engine.job.claim import is_done
from engine.job.context import JobContext
from engine.job.hub.push import push_result
from engine.job.prepare import prepare, recorded
from engine.results.outcome import Outcome
from engine.results.output.folder import OutputFolder
from engine.task.settings import Settings, is_read_only
from engine.task.task import Task
from engine.training.distributed.group import Processes


def open_job(
    settings: Settings,
    task: Task,
    output: OutputFolder,
    stop: Stop,
    outcome: Outcome,
    *,
    processes: Processes,
    digests: FileDigests,
) -> JobContext | None:
    """Prepare the job; return None where its result is already in the output folder, so that the run ends.

    All processes of a job call this. `output` is locked by the first one. `digests` may already be hashing.

    Raises:
        JobError: something is missing or does not fit, or the folder holds another job's result or progress.
    """
    with outcome.clock.phase("download"):
        before = processes.broadcast(lambda: recorded(settings, task))
        job = processes.first_then_others(
            lambda: prepare(settings, task, weights=True, say=say, digests=digests, before=before)
        )
        outcome.task_digest = job.task_digest
    context = JobContext(settings=settings, job=job, processes=processes, output=output, outcome=outcome, stop=stop)
    if not processes.broadcast(lambda: is_done(context)):
        return context
    introduce_task(outcome)
    prune_cache(settings, processes)
    processes.broadcast(lambda: push_result(context, is_new=False))
    return None


def introduce_task(outcome: Outcome) -> None:
    """Write the log's first line; where that was written before the task's digest was known, write the digest."""
    if not begin_log():
        say(f"task sha256:{outcome.task_digest}", task_digest=outcome.task_digest)


def prune_cache(settings: Settings, processes: Processes) -> None:
    """Remove the least recently used entries of a cache above its bound; entries that this job uses are locked."""
    if settings.max_cache_bytes is None or not processes.is_first or is_read_only(settings.cache_dir):
        return
    pruned = prune(settings.cache_dir, settings.max_cache_bytes)
    if pruned.did_anything:
        say(pruned.describe(settings.cache_dir, settings.max_cache_bytes))

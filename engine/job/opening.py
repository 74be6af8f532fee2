"""Open the job: prepare it, find whether its result is there already, claim its output folder. No torch.

The libraries take seconds to import, so whatever ends a job at once is found here, before that.
"""

from __future__ import annotations

from engine.core.console import begin_log, say
from engine.core.errors import CheckpointError, OutputError
from engine.core.files.file_hashes import FileDigests
from engine.core.files.retention import prune
from engine.core.process.signals import Stop
from engine.job.context import JobContext, RunContext
from engine.job.hub.push import push_result
from engine.job.prepare import prepare, recorded
from engine.results import held_out_rows
from engine.results.checkpoint import Checkpoint
from engine.results.outcome import Outcome
from engine.results.output.contents import Claim
from engine.results.output.folder import OutputFolder
from engine.results.progress_log import ProgressLog
from engine.task.settings import Settings, is_read_only
from engine.task.task import Task
from engine.training.distributed.processes import Processes
from engine.training.methods.registry import load_checkpoint


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
    if not begin_log() and not outcome.is_introduced:
        say(f"task sha256:{outcome.task_digest}", task_digest=outcome.task_digest)


def prune_cache(settings: Settings, processes: Processes) -> None:
    """Remove the least recently used entries of a cache above its bound; entries that this job uses are locked."""
    if settings.limits.max_cache_bytes is None or not processes.is_first or is_read_only(settings.cache_dir):
        return
    pruned = prune(settings.cache_dir, settings.limits.max_cache_bytes)
    if pruned.did_anything:
        say(pruned.describe(settings.cache_dir, settings.limits.max_cache_bytes))


def is_done(context: JobContext) -> bool:
    """Return whether the job's result is already in the output folder; then `result.json` records it as done.

    Only the job's first process calls it, which has locked the folder.

    Raises:
        OutputError: another job's result or unfinished progress lies there, or this job's result is damaged.
    """
    job, output = context.job, context.output
    if _ends_finished_chain(context):
        return True
    if output.look(job.record, in_place=job.in_place, overwrite=context.settings.overwrite) is not Claim.FINISHED:
        return False
    output.settle()
    _report_own_result(context)
    return True


def claim_output(context: RunContext, log: ProgressLog) -> None:
    """Claim the output folder for the job, in its first process, where `is_done` was false.

    Raises:
        OutputError: it cannot be written.
    """
    job = context.job
    claim = context.output.claim(
        job.record,
        request=job.request,
        found={
            **job.resolved,
            "revision": job.task.model.revision,
            **job.origin(context.device),
        },
        in_place=job.in_place,
        overwrite=context.settings.overwrite,
    )
    if claim is Claim.ANEW:
        say("the saved progress is of an earlier version and does not record its dataset: this task starts over")
    log.claimed(is_fresh=claim is not Claim.CONTINUES)


def _ends_finished_chain(context: JobContext) -> bool:
    """Return whether the job would continue a finished training in place: then there is nothing to do."""
    job, output, outcome = context.job, context.output, context.outcome
    if not isinstance(job.parent, Checkpoint):
        return False
    outcome.global_step = outcome.resumed_from_step = job.parent.global_step
    if not (job.in_place and job.parent.finished and job.step_range.num_steps == 0):
        return False
    output.settle()
    _record_as_done(context, job.parent)
    say(f"nothing to do: the training in {output.checkpoint} is finished")
    return True


def _report_own_result(context: JobContext) -> None:
    """Say that the job's result is already there.

    Raises:
        OutputError: the result is damaged.
    """
    folder = context.output.checkpoint
    try:
        own = load_checkpoint(folder)
    except CheckpointError as error:
        raise OutputError(f"this task's result exists but is damaged: {error}; delete it and run again") from None
    _record_as_done(context, own)
    more = "" if own.finished else f"; to continue from step {own.global_step}, add --checkpoint {folder}"
    say(f"nothing to do: this task's result is already in {folder}{more}")


def _record_as_done(context: JobContext, own: Checkpoint) -> None:
    """Write `result.json` for a finished result whose job was stopped before it wrote that file."""
    outcome = context.outcome
    if not context.output.is_recorded_as_done(own.digest):
        outcome.global_step, outcome.finished, outcome.checkpoint_digest = own.global_step, own.finished, own.digest
        rows = held_out_rows.parse(own.held_out_losses)
        outcome.held_out_loss, outcome.best_step = held_out_rows.summary(rows, context.job.curve)
        outcome.message = "the result was published by an earlier run"
        context.output.write_result(outcome.done())

"""Claim the output folder for the job, or find that the job's result is already there. No torch."""

from __future__ import annotations

from engine.core.console import say
from engine.core.errors import CheckpointError, OutputError
from engine.job.context import JobContext, RunContext
from engine.results import held_out_rows, provenance
from engine.results.checkpoint import Checkpoint
from engine.results.output.contents import Claim
from engine.results.progress_log import ProgressLog
from engine.training.methods.registry import load_checkpoint


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
        found={**job.resolved, "revision": job.task.model.revision, **provenance.origin(context.device)},
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

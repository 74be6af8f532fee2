"""The lineage of a result: the tasks of its chain, in the checkpoint and in the report."""

from __future__ import annotations

from typing import Any

from engine.job.context import RunContext
from engine.job.start import Training
from engine.results import provenance
from engine.results.checkpoint import Checkpoint


def lineage_of(context: RunContext, training: Training) -> list[dict[str, Any]]:
    """Return an entry for each task of the chain so far, this one last."""
    job, step = context.job, training.trainer.step
    chain = job.parent if isinstance(job.parent, Checkpoint) else None
    own = {
        "parent": job.record.parent,
        "task_digest": job.task_digest,
        "from_step": job.step_range.start_step,
        "to_step": step,
        "changed": job.changed_settings(),
        **provenance.origin_of_result(training.origins, step),
    }
    return [*(chain.lineage if chain else []), own]

"""Fill in a result's model card, `checkpoint/README.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from engine.core.redact import public
from engine.job.job import Job
from engine.results.report import model_card
from engine.results.report.model_card import ModelCard
from engine.task.plan.learning_rates import base_learning_rate
from engine.training.methods.method import About
from engine.training.methods.usage import hub_id

_OF_THIS_TASK: Final = {
    "validation",
    "train_args.num_train_steps",
    "train_args.num_train_epochs",
    "train_args.gradient_accumulation_steps",
}
"""Keys that may differ although the training is the same, so that the card does not depend on how it is cut into tasks
and shared by processes; and the validation, whose images are listed."""


def model_card_of(job: Job, about: About, images: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the model card.

    Args:
        job: the job.
        about: its training.
        images: descriptions of the validation images, as in `prompts.json`.
    """
    method, family, base_id = job.method, job.base.family, hub_id(job.base)
    task_tag = f"text-to-{family.medium}"
    return model_card.render(
        ModelCard(
            noun=method.words.noun,
            hub_id=base_id,
            identity=job.base.identity,
            relation=method.relation,
            licence=family.licences.get(base_id or ""),
            pipeline_tag=task_tag,
            tags=(task_tag, "diffusers", *method.hub_tags, *family.hub_tags),
            trigger_word=job.task.dataset.trigger_word,
            images=images,
            usage=method.usage(about, images[0]),
            settings=[(key, _shown(value)) for key, value in _settings(job)],
            global_step=about.global_step,
            max_steps=about.max_steps,
        )
    )


def _settings(job: Job) -> Iterator[tuple[str, Any]]:
    """Yield the settings of the whole training: some always, then the task's keys that are not at their defaults."""
    steps, args = job.step_range, job.task.train_args
    yield f"{job.medium.names.several} in a step", steps.visits_per_step
    yield f"{job.medium.names.several} in an epoch", len(job.dataset)
    yield "learning rate", base_learning_rate(args, steps.micro_batches)
    yield "resolution", args.resolution
    yield "precision", "float32" if job.task.mixed_precision == "no" else job.task.mixed_precision
    yield "prediction", job.prediction_type
    yield from (
        (key.replace("_", " "), value) for key, value in job.method.invariants(job.base.family, job.task).items()
    )
    yield from _flat(job.identified_task)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if name in _OF_THIS_TASK:
            continue
        if isinstance(inner, dict):
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner


def _shown(value: Any) -> str:
    return public(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""Build a job's cache of encodings, the encoder of its visits, and its held-out loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from engine.core.console import say
from engine.evaluation.held_out_loss import HeldOutCurve, HeldOutLoss
from engine.job.job import Job
from engine.models.family import Family
from engine.results.held_out_rows import Row
from engine.results.outcome import Outcome
from engine.task.plan.steps import validation_interval
from engine.task.plan.visits import VisitStream
from engine.task.settings import Settings
from engine.training.buckets import BucketOrder
from engine.training.distributed.processes import Processes
from engine.training.encoding.build import build_visit_encoder
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.visit_encoder import VisitEncoder


def encoding_cache(job: Job, settings: Settings, device: torch.device) -> EncodingCache:
    """Return the cache of what the job's base model encodes, on this device and with these library versions."""
    namespace = {
        "base_model": job.base.identity,
        "variants": dict(job.base.variants),
        **({"components": job.base.identities} if job.base.elsewhere else {}),
        "mixed_precision": job.task.mixed_precision,
        **job.origin(device),
    }
    bounds = (settings.encoded_cache_bytes, settings.limits.max_cache_bytes)
    return EncodingCache(settings.cache_dir, namespace, max_bytes=min(bound for bound in bounds if bound is not None))


def visit_encoder(
    job: Job,
    family: Family,
    cache: EncodingCache,
    placement: EncoderPlacement,
    *,
    processes: Processes,
    check_stop: Callable[[], None],
) -> VisitEncoder:
    """Return the encoder of the job's visits."""
    order = None
    if job.buckets:
        order = BucketOrder(seed=job.task.seed, members=job.buckets.members, batch_size=job.step_range.batch_size)
    stream = VisitStream(
        seed=job.task.seed,
        num_rows=len(job.dataset),
        random_flip=job.task.transforms.random_flip,
        num_train_timesteps=job.base.num_train_timesteps,
        timesteps=job.timesteps,
        caption_dropout=job.task.dataset.caption_dropout,
        order=order,
    )
    return build_visit_encoder(
        job.task,
        job.dataset,
        job.medium,
        stream=stream,
        step_range=job.step_range,
        family=family,
        cache=cache,
        placement=placement,
        processes=processes,
        check_stop=check_stop,
        starts_small=placement.stays,
        say=say,
        extents=[one.extent for one in job.buckets.members] if job.buckets else [],
    )


def held_out_loss(
    job: Job,
    family: Family,
    cache: EncodingCache,
    placement: EncoderPlacement,
    *,
    device: torch.device,
    processes: Processes,
    check_stop: Callable[[], None],
) -> HeldOutLoss | None:
    """Return the job's held-out loss; None if it measures none."""
    if job.held_out is None:
        return None
    return HeldOutLoss(
        job.task,
        job.held_out.images,
        job.medium,
        timesteps=job.timesteps,
        target=job.measured_at,
        family=family,
        cache=cache,
        placement=placement,
        device=device,
        processes=processes,
        check_stop=check_stop,
    )


def held_out_curve(
    job: Job,
    loss: HeldOutLoss | None,
    *,
    rows: list[Row],
    outcome: Outcome,
    averaged: Callable[[], AbstractContextManager[None]],
) -> HeldOutCurve:
    """Return the curve of the job's held-out loss, which adds its measurements to the chain's `rows`.

    `averaged` is `Trainer.averaged`.
    """
    return HeldOutCurve(
        loss,
        rows,
        curve=job.curve,
        step_range=job.step_range,
        interval=validation_interval(job.task.validation, job.step_range),
        outcome=outcome,
        averaged=averaged if job.task.train_args.ema_decay is not None else None,
    )

"""The whole job, readable as a table of contents: wiring only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.core import rng
from engine.core.console import Meter, begin_log, say
from engine.core.errors import (
    CheckpointError,
    DatasetError,
    DeviceError,
    JobError,
    ModelError,
    NonFiniteError,
    OutputError,
    PeerError,
    PeerInterrupted,
    TaskError,
)
from engine.core.files.file_hashes import FileDigests
from engine.core.files.retention import prune
from engine.core.process.signals import Stop
from engine.evaluation.held_out_loss import HeldOutLoss
from engine.evaluation.validation_images import draw_pictures
from engine.job import memory
from engine.job.advice import disk_space
from engine.job.advice.describe import describe
from engine.job.due_results import InterimResults
from engine.job.precheck import check_memory
from engine.job.prepare import prepare, recorded
from engine.job.publish import publish
from engine.job.session import ProgressSaver, Session, Training, start_training
from engine.models import registry
from engine.models.family import PRECISIONS, Family, LoadArgs
from engine.results import held_out_rows, provenance
from engine.results.checkpoint import Checkpoint
from engine.results.history import StepReport
from engine.results.outcome import Outcome
from engine.results.output.contents import Claim
from engine.results.output.folder import OutputFolder
from engine.results.trackers.jsonl import ProgressLog
from engine.task.plan.visits import VisitStream
from engine.task.settings import Settings, is_read_only
from engine.task.task import Task
from engine.training.buckets import BucketOrder
from engine.training.device import available_bytes, device_troubles, open_device
from engine.training.distributed.group import Processes
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.visit_encoder import VisitEncoder
from engine.training.gradient_checkpointing import recompute_activations
from engine.training.methods.registry import load_checkpoint
from engine.training.trainer import train


def run(
    settings: Settings,
    task: Task,
    output: OutputFolder,
    stop: Stop,
    outcome: Outcome,
    *,
    processes: Processes,
    digests: FileDigests,
    log: ProgressLog,
) -> None:
    """Train one task's slice and publish its result, or find that it is published already.

    Each of a job's processes comes here; `output` is locked in the first one, and the others leave it alone, as they do
    `log`. `digests` may have been begun on the base model's files.

    Raises:
        JobError: of the kind of whatever went wrong.
        Interrupted: by a signal, after the exact progress was saved.
    """
    rng.check_known_answers()
    device = open_device(settings, task.mixed_precision)
    processes.open_device(device)
    outcome.device = provenance.describe_device(device)
    with outcome.clock.phase("download"):
        before = processes.from_first(lambda: recorded(settings, task))
        job = processes.one_first(
            lambda: prepare(settings, task, weights=True, report=say, digests=digests, before=before)
        )
        outcome.task_digest = job.task_digest
    if not begin_log():  # something had to be said before this was known
        say(f"task sha256:{outcome.task_digest}", task_digest=outcome.task_digest)
    session = Session(
        settings=settings,
        output=output,
        stop=stop,
        outcome=outcome,
        device=device,
        job=job,
        processes=processes,
        log=log,
    )
    _require_one_job(session)
    _prune_cache(session)
    if processes.from_first(lambda: _is_done_already(session)):
        return
    processes.from_first(lambda: disk_space.require(job, output.root))
    available = available_bytes(session.device, processes.world_size)
    for line in describe(job) + memory.describe(job.base, job.task, device=device.type, available=available):
        say(line)
    check_memory(job, device.type, available=available, num_processes=settings.place.num_here)
    with device_troubles(job, device, available):
        with outcome.clock.phase("load"):
            training = start_training(session, _load_family(session))
            digests.require_unchanged()
            if memory.wants_recompute(job.base, job.task, device=device.type, available=available):
                recompute_activations(training.family.denoiser)
        _train(session, training)
        _prune_cache(session)
        processes.follow_first()
        processes.from_first(lambda: _draw_and_publish(session, training))


def _draw_and_publish(session: Session, training: Training) -> None:
    with session.outcome.clock.phase("validate"):
        pictures = draw_pictures(session, training)
    publish(session, training, pictures)


def _require_one_job(session: Session) -> None:
    """All processes have found the same things, on equal devices: else their gradients were not of one training."""
    job = session.job
    found: list[tuple[str, Any, type[JobError]]] = [
        ("the task's digest", job.task_digest, TaskError),
        ("the base model", job.base.identity, ModelError),
        ("the dataset's fingerprint", job.dataset.fingerprint, DatasetError),
        ("the held-out images", job.curve, DatasetError),
        ("the checkpoint's digest", job.record.parent, CheckpointError),
        ("the device", provenance.describe_device(session.device), DeviceError),
        ("the installation", provenance.versions(), DeviceError),
    ]
    for what, value, error in found if session.processes.world_size > 1 else ():
        session.processes.require_same(what, value, error)


def _is_done_already(session: Session) -> bool:
    """Take the output folder, unless there is nothing left to do in it."""
    job, output, outcome = session.job, session.output, session.outcome
    if isinstance(job.parent, Checkpoint):
        outcome.global_step = outcome.resumed_from_step = job.parent.global_step
        if job.in_place and job.parent.finished and job.step_range.num_steps == 0:
            output.settle()
            _tell_done(session, job.parent)
            say(f"nothing to do: the training in {output.checkpoint} is finished")
            return True
    claim = output.claim(
        job.record,
        request=job.request,
        found={**job.resolved, "revision": job.task.model.revision, **provenance.origin(session.device)},
        in_place=job.in_place,
        overwrite=session.settings.overwrite,
    )
    if claim is Claim.ANEW:
        say(
            "the progress saved here does not say what it was trained on (an earlier version's): this task begins again"
        )
    if claim is not Claim.FINISHED:
        session.log.claimed(is_fresh=claim is not Claim.CONTINUES)
        return False
    try:
        own = load_checkpoint(output.checkpoint)
    except CheckpointError as error:
        raise OutputError(f"this task's result is there but damaged: {error}; delete it and run again") from None
    _tell_done(session, own)
    more = "" if own.finished else f"; to go on from step {own.global_step}, add --checkpoint {output.checkpoint}"
    say(f"nothing to do: this task's result is already in {output.checkpoint}{more}")
    return True


def _tell_done(session: Session, own: Checkpoint) -> None:
    """Write `result.json` for a finished result whose job was stopped before it could."""
    outcome = session.outcome
    if not session.output.tells_of(own.digest):
        outcome.global_step, outcome.finished, outcome.checkpoint_digest = own.global_step, own.finished, own.digest
        rows = held_out_rows.parse(own.held_out_losses)
        outcome.held_out_loss, outcome.best_step = held_out_rows.summary(rows, session.job.curve)
        outcome.message = "the result was published by an earlier run"
        session.output.write_result(outcome.done())


def _load_family(session: Session) -> Family:
    job = session.job
    return registry.load(
        job.base.family,
        LoadArgs(
            folder=job.base.folder,
            single_file=job.base.single_file,
            variants=job.base.variants,
            dtype=PRECISIONS[job.task.mixed_precision],
            device=session.device,
            prediction_type=job.prediction_type,
            zero_terminal_snr=job.task.train_args.zero_terminal_snr,
            caption_chunks=job.task.dataset.caption_chunks,
        ),
    )


def _train(session: Session, training: Training) -> None:
    job, outcome, stop, trainer = session.job, session.outcome, session.stop, training.trainer
    saver = ProgressSaver(session, training)
    trainer.notice = saver.notice
    cache = _encoding_cache(session)

    def check_stop() -> None:
        stop.check(saver.save)

    encoder = _visit_encoder(session, training.family, cache, check_stop)
    held_out_loss = HeldOutLoss(session, training, cache, check_stop)
    outcome.newly_skipped = lambda: encoder.skipped + held_out_loss.skipped

    with _watched(session, trainer.step) as (seen, tell), stop.deferred():
        interim = InterimResults(session, training, saver, tell)

        def make_due_results() -> None:
            """Of the step that was reached."""
            row = held_out_loss.measure_if_due()
            if row is not None:
                tell("evaluation", heldout_loss=row.loss)
            interim.make()

        def after_step(report: StepReport) -> None:
            outcome.global_step = report.step
            outcome.steps_trained += 1
            seen(report)
            saver.after_step(report)
            make_due_results()

        try:
            make_due_results()
            train(trainer, job.step_range, encoder.examples, after_step, outcome.clock, at_hand=encoder.at_hand)
            saver.finish()
        except NonFiniteError:
            saver.save()  # mostly found before the update: this is the last good state; else the save refuses, too
            _blame_base_model(training.family)
            raise
        except (PeerError, PeerInterrupted):
            saver.save()
            raise


def _blame_base_model(family: Family) -> None:
    """After a loss that is not finite: raise ModelError where the base model's own weights are not."""
    for name, part in family.parts.items():
        for key, tensor in part.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"the base model's {name} holds {key}, which is not finite; take another base model")


@contextmanager
def _watched(session: Session, step: int) -> Iterator[tuple[Callable[[StepReport], None], Callable[..., None]]]:
    """Let people and tools see each step of the block, which begins at `step`, and other events by their names.

    The first process sees for all.
    """
    if not session.processes.is_first:
        yield lambda report: None, lambda event, **more: None
        return
    log, step_range = session.log, session.job.step_range
    # Encoding the first images has a bar of its own, and is no part of the training's time.
    meter = Meter("training", "steps", step_range.stop_step, start=step, begins=False)
    session.outcome.clock.watchers.append(lambda phase: meter.begin() if phase == "train" else None)
    try:
        with log.training(step_range, step):
            yield lambda report: meter.update(report.step, log.step(report)), log.tell
    finally:
        meter.close()


def _prune_cache(session: Session) -> None:
    """Keep the cache to its bound, now that all that the job needs of it is held."""
    settings = session.settings
    if settings.max_cache_bytes is None or not session.processes.is_first or is_read_only(settings.cache_dir):
        return
    pruned = prune(settings.cache_dir, settings.max_cache_bytes)
    if pruned.did_anything:
        say(pruned.describe(settings.cache_dir, settings.max_cache_bytes))


def _encoding_cache(session: Session) -> EncodingCache:
    job, settings = session.job, session.settings
    namespace = {
        "base_model": job.base.identity,
        "variants": dict(job.base.variants),
        "mixed_precision": job.task.mixed_precision,
        **provenance.origin(session.device),
    }
    bounds = (settings.encoded_cache_bytes, settings.max_cache_bytes)
    return EncodingCache(settings.cache_dir, namespace, max_bytes=min(bound for bound in bounds if bound is not None))


def _visit_encoder(
    session: Session, family: Family, cache: EncodingCache, check_stop: Callable[[], None]
) -> VisitEncoder:
    job = session.job
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
    return VisitEncoder(
        task=job.task,
        dataset=job.dataset,
        stream=stream,
        step_range=job.step_range,
        family=family,
        cache=cache,
        device=session.device,
        check_stop=check_stop,
        report=say,
        processes=session.processes,
    )

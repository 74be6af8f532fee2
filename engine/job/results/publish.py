"""Publish the result of a job: draw the validation images, build the files, put the folders in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.core.console import say
from engine.core.files.atomic_files import Contents, Pieces
from engine.core.messages import duration_text, plural
from engine.data.tag_counts import count_tags
from engine.evaluation import drawings
from engine.evaluation.baseline_images import conditions, drawn_or_cached
from engine.evaluation.validation_images import Pictures, carried, draw, planned_images, without_training
from engine.job.context import RunContext
from engine.job.encoding import encoding_cache
from engine.job.hub.card import model_card_of
from engine.job.job import Job
from engine.job.results.finish_now import FinishNow
from engine.job.results.lineage import lineage_of
from engine.job.results.watch import Watch
from engine.job.start import Training
from engine.results import checkpoint, held_out_rows, provenance, report
from engine.results import history as history_file
from engine.results.checkpoint import Checkpoint
from engine.results.outcome import shares_of
from engine.results.output import step_results
from engine.results.output.folder import REPORT
from engine.training.methods.method import About


def draw_and_publish(context: RunContext, training: Training, watch: Watch) -> None:
    """Draw the validation images, and put the job's result in place.

    Only the job's first process calls it, with the weights that are published: inside `Trainer.averaged`.

    Raises:
        OutputError: something cannot be written, or a result of an earlier step is gone.
    """
    with context.outcome.clock.phase("validate"):
        pictures = _draw(context, training, watch)
    watch.drawn(pictures)
    _publish(context, training, pictures, watch)


def _draw(context: RunContext, training: Training, watch: Watch) -> Pictures:
    """Draw the validation images, and the baseline's if neither this chain nor the cache has them yet."""
    job, task, family = context.job, context.job.task, training.family
    images = planned_images(task, job.dataset, job.base.family)
    baseline = without_training(images)
    where: dict[str, Any] = {
        "resolution": task.train_args.resolution,
        "device": context.device,
        "check_stop": watch.renew_if_due,
    }
    drawn = draw(images, family, what="validation", **where).files
    without = carried(job.parent if isinstance(job.parent, Checkpoint) else None, baseline)
    if without is None:
        without = drawn_or_cached(
            baseline,
            cache=encoding_cache(job, context.settings, context.device),
            conditions=conditions(task),
            baseline=training.trainable.baseline,
            draw=lambda missing: draw(missing, family, what=f"validation without {job.method.words.trained}", **where),
        )
    return Pictures(
        images=images,
        drawn=drawn,
        baseline=[image.described() for image in baseline],
        without=without,
        between={
            name: b"".join(file.chunks()) for name, file in training.step_results.files(step_results.IMAGES).items()
        },
    )


def _publish(context: RunContext, training: Training, pictures: Pictures, watch: Watch) -> None:
    """Publish the validation images first and the checkpoint last, since it marks the job as done; then end the job."""
    job, output, outcome = context.job, context.output, context.outcome
    with outcome.clock.phase("publish"):
        origin = provenance.origin_of_result(training.origins, training.trainer.step)
        lineage = lineage_of(context, training)
        finished = job.step_range.finishes
        files, digest = _checkpoint_files(job, training, pictures, lineage, origin)
        listing = {drawings.PROMPTS_FILE: drawings.listing(pictures.images)}
        images = pictures.drawn | pictures.between
        output.publish(output.validation, images | listing, last=drawings.PROMPTS_FILE)
        usage = job.method.usage(_about(job, training), pictures.images[0].described())
        page = watch.page.of(pictures, lineage, digest=digest, files=files, usage=usage)
        output.write(REPORT, report.render(page).encode())
    # A signal from here on does not stop the job.
    context.stop.ignore()
    with outcome.clock.phase("publish"):
        output.publish(output.checkpoint, files, last=checkpoint.MANIFEST)
    watch.published()
    outcome.finished, outcome.checkpoint_digest = finished, digest
    outcome.is_told_to_finish = FinishNow(context).is_due(outcome.global_step)
    told = "told to finish; " if job.is_ended_early else ""
    ending = "the whole training is finished" if finished else f"{told}the next task continues from it"
    outcome.message = f"trained {plural(outcome.steps_trained, 'step')} to step {outcome.global_step}; {ending}"
    output.write_result(outcome.done())
    output.complete()
    say(f"done: {outcome.message}")
    phases = ", ".join(f"{name} {share:.0%}" for name, share in shares_of(outcome.clock.seconds).items())
    say(f"time: {duration_text(sum(outcome.clock.seconds.values()))}, of it {phases}")
    say(f"open {output.root / REPORT}")


def _checkpoint_files(
    job: Job, training: Training, pictures: Pictures, lineage: list[dict[str, Any]], origin: dict[str, Any]
) -> tuple[dict[str, Contents], str]:
    """Return the files of `checkpoint/` and its digest."""
    store, step = training.step_results, training.trainer.step
    assert store.state is not None and store.state.is_of(step), "the progress is saved after the last step"
    return checkpoint.build_files(
        global_step=step,
        state_files=store.state_files(),
        state_scalars=store.state.scalars,
        weights=store.stored(exported(job, training)),
        world=job.invariants,
        settings=job.recorded_settings,
        lineage=lineage,
        history=history_file.dump(training.history),
        baseline=pictures.baseline,
        pictures=pictures.without,
        steps=_steps(job, training),
        finished=job.step_range.finishes,
        card=model_card_of(job, _about(job, training), [image.described() for image in pictures.images]),
        held_out_losses=held_out_rows.dump(training.held_out_losses),
        manifest={
            "task_digest": job.task_digest,
            "parent": job.record.parent,
            **job.resolved,
            **origin,
            **({"ended_at_step": training.trainer.step} if job.is_ended_early else {}),
        },
    )


def _steps(job: Job, training: Training) -> dict[str, Contents]:
    """Return the weights of the chain's earlier steps, as many as the task keeps."""
    if job.task.checkpoint_every_n_steps is None:
        return {}
    chain = job.parent.steps if isinstance(job.parent, Checkpoint) else {}
    files = chain | training.step_results.files(step_results.WEIGHTS)
    stay = step_results.latest(files, job.task.checkpoint_limit)
    return {name: file for name, file in files.items() if name in stay}


def exported(job: Job, training: Training) -> Mapping[str, bytes | Pieces]:
    """Return the current weights as the files that the training method publishes."""
    return training.trainable.export(_about(job, training))


def _about(job: Job, training: Training) -> About:
    return About(
        base=job.base,
        prediction_type=job.prediction_type,
        task=job.task,
        global_step=training.trainer.step,
        max_steps=job.step_range.max_steps,
        micro_batches=job.step_range.micro_batches,
        num_images=len(job.dataset),
        count_tags=lambda: count_tags(job.dataset, job.task.dataset.trigger_word),
    )

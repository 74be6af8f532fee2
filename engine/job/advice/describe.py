"""Describe a job in lines for a person: what would run, and what is likely a mistake. No torch."""

from __future__ import annotations

from collections import Counter

from engine.core.messages import plural, short, shown
from engine.core.redact import public
from engine.data.dataset.held_out import HeldOut
from engine.evaluation.drawings import Canvas, extents
from engine.job import memory
from engine.job.advice import clip_notes, lengths, rates
from engine.job.advice.clips import Survey
from engine.job.advice.ineffective_keys import without_effect
from engine.job.job import Job
from engine.results import held_out_rows
from engine.results.checkpoint import Checkpoint
from engine.results.output import step_results
from engine.task.plan.learning_rates import base_learning_rate, base_text_encoder_rate
from engine.task.plan.steps import validation_interval
from engine.training.methods.warm_start import WarmStart


def describe(job: Job) -> list[str]:
    """Return lines on what would run, after notes on a training that probably ends sooner than was meant."""
    step_range, args = job.step_range, job.task.train_args
    rate = base_learning_rate(args, step_range.micro_batches)
    effective, noun = step_range.visits_per_step, job.medium.names.noun
    quantization = job.task.model.quantization
    lines = [
        *_describe_trained(job),
        f"base model     {public(job.task.model.name)} ({job.base.identity[:19]}, {job.prediction_type})",
        *([f"quantization   {quantization}: the linear layers of the denoiser's blocks"] if quantization else []),
        *(f"{name:<14} {public(one.wanted.name)} ({one.identity[:19]})" for name, one in job.base.elsewhere.items()),
        f"dataset        {public(job.task.dataset.name or job.task.dataset.url or '')}: {_size(job)}",
        f"batch          {step_range.batch_size} x {plural(step_range.micro_batches, 'micro-batch', 'micro-batches')}"
        f" = {plural(effective, noun)} a step",
        f"epoch          {plural(step_range.steps_per_epoch, 'step')}",
        f"this task      steps {step_range.start_step:,} to {step_range.stop_step:,} of {step_range.max_steps:,}"
        f" ({plural(step_range.num_steps, 'step')}, {plural(step_range.num_steps * effective, noun)}"
        f", {step_range.num_steps * effective / len(job.dataset):.2f} epochs)",
        f"learning rate  {rate:g}, {args.lr_scheduler.lr_scheduler}"
        + (f" ({args.learning_rate:g} x {effective} by scale_lr)" if args.scale_lr and effective > 1 else ""),
    ]
    lines += _describe_noise(job)
    if args.train_text_encoder:
        own = base_text_encoder_rate(args, step_range.micro_batches)
        lines.append(f"text encoder   {own:g}, {args.lr_scheduler.lr_scheduler}")
    if survey := Survey.of(job):
        lines += clip_notes.lines(survey)
    if job.buckets:
        lines += job.buckets.lines(job.medium.names)
    if job.held_out:
        lines.append(f"held-out loss  {_describe_held_out(job, job.held_out)}")
    lines += [*_describe_drawings(job), *_describe_interim(job)]
    lines.append(f"starts from    {_describe_parent(job)}")
    return [f"note: {note}" for note in lengths.notes(job)] + lines + [f"note: {note}" for note in warnings(job)]


def _describe_trained(job: Job) -> list[str]:
    found = memory.predict(job.base, job.task, recompute=True, device="cpu")
    if found is None:
        return []
    decay = job.task.train_args.ema_decay
    averaged = "" if decay is None else f"; moving average with a decay of up to {decay:g}"
    return [
        f"trains         {job.method.words.noun}: {found.trained:,} values{averaged}",
        f"optimizer      {job.task.train_args.optimizer}: its state takes {memory.gib(found.optimizer)}, "
        f"{found.optimizer / max(1, found.trained):.2g} bytes for each value",
    ]


def _describe_noise(job: Job) -> list[str]:
    """Return a line on a flow-matching model's timesteps and noise levels; none for other models."""
    args, levels = job.task.train_args, job.base.describe_noise(job.task.train_args)
    if levels is None:
        return []
    sampling = job.base.timestep_sampling(args)
    options = {
        "logit_normal": f" (mean {args.logit_mean:g}, standard deviation {args.logit_std:g})",
        "mode": f" (scale {args.mode_scale:g})",
    }
    usual = "" if args.timestep_sampling else ", as is usual for this model"
    told = f"; guidance scale {args.guidance_scale:g}" if job.base.family.takes_guidance(job.base.config) else ""
    return [f"timesteps      {sampling}{options.get(sampling or '', '')}{usual}; {levels}{told}"]


def _describe_held_out(job: Job, held_out: HeldOut) -> str:
    interval, measured = validation_interval(job.task.validation, job.step_range), len(held_out.images)
    rows = held_out_rows.parse(job.parent.held_out_losses) if isinstance(job.parent, Checkpoint) else []
    times = held_out_rows.num_due(rows, curve=job.curve or "", step_range=job.step_range, interval=interval)
    some = f"{measured:,} of " if measured < held_out.num_images else ""
    taken = " taken out of the dataset" if held_out.num_taken else ""
    between = f", every {plural(interval, 'step')}" if interval else ""
    return (
        f"{some}{plural(held_out.num_images, job.medium.names.noun)}{taken}, "
        f"measured before and after this task{between}: "
        f"{plural(times, 'time')} {measured * held_out_rows.STRATA} forward passes"
    )


def _describe_drawings(job: Job) -> list[str]:
    """Return a line on the validation images; none if they are as many images of the task's resolution."""
    family, canvas = job.base.family, Canvas.of(job.task, job.base.family)
    counts = Counter(extents(job.task, family))
    if canvas.num_frames is None and set(counts) == {job.task.train_args.extent}:
        return []
    rate = "" if canvas.frame_rate is None else f"; {canvas.frame_rate:g} frames a second"
    listed = ", ".join(
        f"{plural(count, 'image' if extent.frames == 1 else 'clip')} of {extent}" for extent, count in counts.items()
    )
    return [f"validation     {listed}{rate}"]


def _describe_interim(job: Job) -> list[str]:
    lines = []
    if images := step_results.image_steps(job.task, job.step_range):
        lines.append(f"{job.medium.names.several + ' also':<15}{_listed(images)}")
    if steps := step_results.checkpoint_steps(job.task, job.step_range):
        limit = job.task.checkpoint_limit
        stay = "latest one" if limit == 1 else f"latest {limit}"
        label = f"{job.method.words.many} also"
        lines.append(f"{label:<15}{_listed(steps)}; the checkpoint keeps the {stay} of the whole chain")
    return lines


def _listed(steps: range) -> str:
    shown = [str(step) for step in (steps if len(steps) <= 6 else [*steps[:3], "…", *steps[-1:]])]
    return f"after {'step' if len(steps) == 1 else 'steps'} {', '.join(shown)}"


def _size(job: Job) -> str:
    dataset = job.dataset
    repeated = f", {len(dataset):,} visits an epoch" if len(dataset) != dataset.num_images else ""
    return f"{plural(dataset.num_images, job.medium.names.noun)}{repeated}"


def warnings(job: Job) -> list[str]:
    """Return lines on what is allowed but likely a mistake."""
    step_range, scheduler = job.step_range, job.task.train_args.lr_scheduler
    found = []
    if scheduler.lr_scheduler != "constant" and scheduler.lr_warmup_steps >= step_range.max_steps:
        found.append(
            f"lr_warmup_steps is {scheduler.lr_warmup_steps}, but the whole training has "
            f"{plural(step_range.max_steps, 'step')}: the learning rate never reaches its full value"
        )
    found += lengths.few_visits(job)
    found += without_effect(job)
    found += _beyond_the_end(job)
    if job.buckets:
        found += job.buckets.warnings(step_range.batch_size, job.medium.names)
    if survey := Survey.of(job):
        found += clip_notes.notes(survey)
    found += rates.notes(job)
    found += job.method.notes(job.task, job.parent if isinstance(job.parent, WarmStart) else None)
    if step_range.num_steps == 0:
        found.append("the checkpoint has reached the end of the training: nothing is left to train")
    for key, (before, now) in job.changed_settings().items():
        found.append(f"{key} changes from {_said(before)} to {_said(now)} at step {step_range.start_step}")
        if key == "validation.dataset" and before and now:
            several = job.medium.names.several
            found.append(
                f"the held-out loss is measured on other {several}, captions or timesteps: it begins a new curve"
            )
    return found


def _beyond_the_end(job: Job) -> list[str]:
    """Return a note for each interval that is at least as long as the whole training."""
    most = job.step_range.max_steps
    intervals = {
        "validation is due": validation_interval(job.task.validation, job.step_range),
        f"{job.method.words.noun} is kept": job.task.checkpoint_every_n_steps,
    }
    return [
        f"{what} every {plural(interval, 'step')}, but the whole training has {most:,}: this happens only at its end"
        for what, interval in intervals.items()
        if interval is not None and interval >= most
    ]


def _describe_parent(job: Job) -> str:
    if job.parent is None:
        return job.method.words.new
    if isinstance(job.parent, WarmStart):
        name = "" if job.parent.name == job.method.main_file else f"{shown(job.parent.name)}, "
        found = f"{name}{job.parent.digest[:12]}"
        return f"{job.method.words.noun} without training state ({found}): step 0, new optimizer state"
    return f"checkpoint {job.parent.digest[:12]} at step {job.parent.global_step}"


def _said(value: object) -> str:
    return "its default" if value is None else short(value)

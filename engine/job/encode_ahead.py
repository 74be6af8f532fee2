"""Encode what a job needs before its denoiser is loaded, where both do not fit into memory with the text encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from engine.core.console import NOTE, say
from engine.evaluation.validation_images import planned_images
from engine.job import encoding
from engine.job.context import RunContext
from engine.job.start import Beginning
from engine.models.family import Family
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.captions import CaptionEncoder
from engine.training.encoding.encoder_placement import EncoderPlacement

_ADVICE: Final = "a larger MAX_ENCODED_BYTES, in a cache folder that can be written, avoids this"


def encode_ahead(context: RunContext, family: Family, beginning: Beginning) -> None:
    """Encode what the task's steps, held-out loss and validation images need, then free the text encoders.

    Those that are trained stay. Images and captions go into the cache of encodings, where the training finds them; the
    prompts' encodings stay in memory. All processes call it.

    Raises:
        DatasetError: no image of a dataset is readable.
        Interrupted: by a signal; what is in the cache is not encoded again.
    """
    job, processes = context.job, context.processes
    start = beginning.state.global_step if beginning.state else job.step_range.start_step
    cache = encoding.encoding_cache(job, context.settings, context.device)
    placement = EncoderPlacement(family, context.device, loading_again=lambda: None)

    def check_stop() -> None:
        context.stop.check(lambda: None)  # nothing is trained yet

    say("encoding before the denoiser is loaded, which does not fit into memory with the text encoders")
    places: dict[str, Any] = {"processes": processes, "check_stop": check_stop}
    with context.stop.deferred(), context.outcome.clock.phase("encode"):
        if processes.is_first:
            _remember_prompts(context, family, cache, placement, check_stop)
        reached = encoding.visit_encoder(job, family, cache, placement, **places).encode_ahead(start)
        if reached < job.step_range.stop_step:
            say(f"{NOTE}captions after step {reached} are encoded while training, which takes longer: {_ADVICE}")
        loss = encoding.held_out_loss(job, family, cache, placement, device=context.device, **places)
        if loss is not None:
            loss.encode()
        placement.release()


def _remember_prompts(
    context: RunContext,
    family: Family,
    cache: EncodingCache,
    placement: EncoderPlacement,
    check_stop: Callable[[], None],
) -> None:
    """Encode the prompts of the validation images, and give them to the family."""
    task = context.job.task
    images = planned_images(task, context.job.dataset, context.job.base.family)
    captions = CaptionEncoder(
        family,
        cache,
        placement,
        check_stop=check_stop,
        length=family.spec.caption_tokens.unusual(task.dataset),
        is_trained=task.train_args.train_text_encoder,
    )
    nothing = family.spec.empty_prompt
    prompts = [prompt for image in images for prompt in (image.prompt, image.negative_prompt or nothing)]
    encoded = captions.encode(prompts)
    family.remember({prompt: conditioning for prompt, (conditioning, _) in zip(prompts, encoded, strict=True)})


def loading_again() -> Callable[[], None]:
    """Return a function that prints a note when it is first called: a text encoder is loaded while training."""
    notes = iter([f"{NOTE}captions are not in the cache of encodings: text encoders are loaded again; {_ADVICE}"])

    def note() -> None:
        for line in notes:
            say(line)

    return note

"""Predict from configurations alone how much memory a job takes, before it runs. No torch.

Only tensors are counted. Not counted: CUDA's own context (about 0.5 GiB), libraries' workspaces, fragmentation of the
allocator, and on a CPU the program itself (about 0.6 GiB).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Final

from engine.evaluation.drawings import extents
from engine.job.memory import phases
from engine.models.base_model import BaseModel
from engine.models.parts.tape import Tape
from engine.models.quantization.rule import quantised_bytes
from engine.models.spec import Footprint, ImageEncoder, Workload
from engine.task.plan.extent import Extent
from engine.task.task import Task, TrainArgs
from engine.training.methods.registry import METHODS
from engine.training.optimizers.layout import Shape
from engine.training.optimizers.registry import OPTIMIZERS

SPARE: Final = 0.9
"""The share of the available memory up to which a prediction counts as fitting."""
_BYTES: Final = {"no": 4, "fp16": 2, "bf16": 2}
_VALUE_BYTES: Final = 4
"""Bytes of a trained value itself, of its average, and of its summed gradient: float32."""
_FLAT_GRADIENT_BYTES: Final = 4 * 3
"""Bytes per trained value of gradients in one flat tensor: the step's once, and those of a micro-batch twice. In 16
bits the latter take half until the activations are freed, which makes up for the working copy."""
_COPY_BYTES: Final = {"no": 0, "fp16": 2, "bf16": 2}
"""Bytes per trained value of the working copy."""
_MICRO_BATCH_BYTES: Final = 4 * 3
"""Bytes per micro-batch of a step: its loss, and what the processes exchange."""
_COPIED_BLOCKS: Final = 2
"""Offloaded blocks on the device at a time: the one that computes, and the one that is copied."""
_NO_MODEL: Final = 1 << 60
"""A number of values beyond that of any model; a task may ask for more than any machine holds."""
_MALFORMED: Final = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


class Offload(IntEnum):
    """The parts of the denoiser's blocks that are in main memory until they compute: each more than the one before."""

    NOTHING = 0
    INPUTS = 1
    """The inputs that gradient checkpointing keeps of each block until the backward pass."""
    BLOCKS = 2
    """The frozen weights, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(phases.Phases):
    """Bytes of device memory at the peak of each phase, and of main memory."""

    main: phases.Phases
    """Main memory; on a CPU the same bytes again, since it is the same memory."""
    trained: int
    """Number of trained values."""
    optimizer: int
    """Bytes of the optimizer's state."""
    average: int
    """Bytes of the moving average; 0 if there is none."""
    recompute: bool
    """True if gradient checkpointing is used."""
    offload: Offload
    """The parts of the denoiser's blocks that are in main memory."""
    apart: bool
    """True if text encoders are freed before the denoiser is loaded; see `decisions.Decision`."""
    parameters: int
    """Number of parameters of the base model, of all components together."""


def predict(
    base: BaseModel,
    task: Task,
    *,
    recompute: bool,
    device: str,
    num_processes: int = 1,
    apart: bool = False,
    offload: Offload = Offload.NOTHING,
) -> Prediction | None:
    """Predict what a task takes; None where the model's configurations do not say.

    For the published models it is within 15% of what torch allocates, as the tests check.

    Args:
        base: the base model.
        task: the task.
        recompute: whether it trains with gradient checkpointing.
        device: cuda or cpu.
        num_processes: the number of processes that train together; the prediction is for one of them.
        apart: whether the text encoders that cannot be trained are freed before the denoiser is loaded; without effect
            on a model that has none of them.
        offload: what of the denoiser's blocks is in main memory; without effect where nothing can be.
    """
    try:
        plan = _Plan(
            recompute=recompute,
            is_cuda=device == "cuda",
            num_processes=num_processes,
            apart=apart,
            offload=offload if recompute and base.family.block_lists else Offload.NOTHING,
        )
        found = _predict(base, task, plan)
    except _MALFORMED:  # loading the model reports what is wrong with it
        return None
    return found if found.peak > 0 and found.parameters < _NO_MODEL else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The arguments of `predict` besides the task."""

    recompute: bool
    is_cuda: bool
    num_processes: int
    apart: bool
    offload: Offload


def _predict(base: BaseModel, task: Task, plan: _Plan) -> Prediction:
    args, width = task.train_args, _BYTES[task.mixed_precision]
    method = METHODS[task.training_type]
    denoiser, texts, fixed = _footprint(base, task, plan, args.extent)
    trained = denoiser.trained + texts.trained
    optimizer = _optimizer_bytes(args, denoiser, texts)
    average = trained * _VALUE_BYTES * (args.ema_decay is not None)
    copy = trained * _COPY_BYTES[task.mixed_precision]
    values = trained * _VALUE_BYTES + optimizer + average
    if method.is_whole_model:
        # Each process has all values and their working copy, but only its share of the rest.
        values = copy + trained * _VALUE_BYTES + _share(optimizer + average, plan.num_processes)
        step = values + _whole_step(denoiser, texts, task, plan)
        lasting, unchanged = values, trained * width  # images without the training are drawn with the weights as read
    else:
        step = values + trained * _FLAT_GRADIENT_BYTES + _activations(denoiser, plan) + texts.kept
        lasting, unchanged = values + copy, 0
    moved = denoiser.block_bytes if plan.offload == Offload.BLOCKS else []
    offloaded = sum(moved)
    sizes = phases.Sizes(
        denoiser=denoiser.frozen_bytes - offloaded * plan.is_cuda + _COPIED_BLOCKS * max(moved, default=0),
        offloaded=offloaded,
        inputs=sum(denoiser.input_bytes) if plan.offload else 0,
        texts=texts.frozen * width,
        fixed=sum(encoder.weight_bytes for encoder in fixed.encoders),
        encode=max((encoder.encode_bytes for encoder in fixed.encoders), default=0),
        lasting=lasting,
        step=step + args.gradient_accumulation_steps * _MICRO_BATCH_BYTES,
        unchanged=unchanged,
    )
    apart = plan.apart and bool(fixed.encoders)
    hold = phases.freed_before if apart else phases.kept_together
    images = replace(fixed.images, decode_bytes=_decode_bytes(base, task, plan, fixed.images))
    own, main = hold(sizes, images, is_cuda=plan.is_cuda, trains_texts=args.train_text_encoder)
    own = replace(own, load=own.load + _unquantised_bytes(base, denoiser, width))
    return Prediction(
        encode=own.encode,
        load=own.load,
        train=own.train,
        validation=own.validation,
        main=main if plan.is_cuda else own,
        trained=trained,
        optimizer=optimizer,
        average=average,
        recompute=plan.recompute,
        offload=plan.offload,
        apart=apart,
        parameters=denoiser.parameters + texts.parameters + fixed.parameters,
    )


def _footprint(base: BaseModel, task: Task, plan: _Plan, extent: Extent) -> tuple[Tape, Tape, Footprint]:
    """Return the tapes of the denoiser and of the text encoders, and the rest, for samples of this size."""
    args, family, width = task.train_args, base.family, _BYTES[task.mixed_precision]
    denoiser, texts = METHODS[task.training_type].tapes(family, task, width, 4 if plan.is_cuda else width)
    if task.model.quantization:
        denoiser.stored = partial(quantised_bytes, task.model.quantization)
    rest = family.footprint(
        base.config,
        Workload(
            batch=args.batch_size,
            resolution=math.isqrt(extent.width * extent.height - 1) + 1,  # memory goes with the number of pixels
            frames=extent.frames,
            caption_tokens=family.caption_tokens.of(task.dataset),
            value_bytes=width,
            is_float16=task.mixed_precision == "fp16",
            trains_text_encoders=args.train_text_encoder,
            denoiser=denoiser,
            text_encoders=texts,
        ),
    )
    return denoiser, texts, rest


def _decode_bytes(base: BaseModel, task: Task, plan: _Plan, trained: ImageEncoder) -> int:
    """Return the bytes that decoding the largest validation image takes; `trained` is of the size that is trained."""
    largest = max(extents(task, base.family), key=math.prod)
    if largest == task.train_args.extent:
        return trained.decode_bytes
    return _footprint(base, task, plan, largest)[2].images.decode_bytes


def _unquantised_bytes(base: BaseModel, denoiser: Tape, width: int) -> int:
    """Return the bytes of weights that are read before they are quantised: those of a whole model in one file."""
    if base.single_file is None or not denoiser.quantised_bytes:
        return 0
    return (denoiser.parameters - denoiser.frozen) * width - denoiser.quantised_bytes


def _optimizer_bytes(args: TrainArgs, *tapes: Tape) -> int:
    """Return the bytes of the optimizer's slots for all trained tensors."""
    layout = OPTIMIZERS[args.optimizer].layout
    shapes = sum((tape.trained_shapes for tape in tapes), Counter[Shape]())
    return sum(slot.num_bytes * count for shape, count in shapes.items() for slot in layout(shape).values())


def _whole_step(denoiser: Tape, texts: Tape, task: Task, plan: _Plan) -> int:
    """Return the peak bytes of activations and gradients where gradients are summed tensor by tensor.

    With several processes each sums its share of the tensors, and has all gradients of its own micro-batch until they
    are exchanged. A single process adds them to the sum as they appear.
    """
    trained = denoiser.trained + texts.trained
    if plan.num_processes > 1:
        sums, own = _share(trained * _VALUE_BYTES, plan.num_processes), _BYTES[task.mixed_precision]
    elif task.train_args.gradient_accumulation_steps > 1:
        sums, own = trained * _VALUE_BYTES, 0
    else:
        sums, own = 0, _VALUE_BYTES
    return sums + max(
        texts.kept + _activations(denoiser, plan, gradient_bytes=own),
        denoiser.trained * own + texts.peak(recompute=False, gradient_bytes=own),
    )


def _activations(denoiser: Tape, plan: _Plan, gradient_bytes: int = 0) -> int:
    """Return the peak of the denoiser's activations on the device: on a CPU offloaded inputs are in the same memory."""
    is_smaller = plan.is_cuda and plan.offload > Offload.NOTHING
    return denoiser.peak(recompute=plan.recompute, offloads_inputs=is_smaller, gradient_bytes=gradient_bytes)


def _share(count: int, num_processes: int) -> int:
    return -(-count // num_processes)


def gib(count: int) -> str:
    """Format a number of bytes for a person."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.0f} MiB"

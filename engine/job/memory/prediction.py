"""Predict from configurations alone how much memory a job takes, before it runs. No torch.

Only tensors are counted. Not counted: CUDA's own context (about 0.5 GiB), libraries' workspaces, fragmentation of the
allocator, and on a CPU the program itself (about 0.6 GiB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.models.base_model import BaseModel
from engine.models.spec import Workload
from engine.task.task import Task
from engine.training.methods.registry import METHODS
from engine.training.optimizers.registry import OPTIMIZERS

SPARE: Final = 0.9
"""The share of the available memory up to which a prediction counts as fitting."""
_BYTES: Final = {"no": 4, "fp16": 2, "bf16": 2}
_GRADIENT_BYTES: Final = 4 * 3
"""Bytes per trained value: the step's gradients once, and those of a micro-batch twice. In 16 bits the latter take half
until the activations are freed, which makes up for the working copy."""
_COPY_BYTES: Final = {"no": 0, "fp16": 2, "bf16": 2}
"""Bytes per trained value of the working copy."""
_MICRO_BATCH_BYTES: Final = 4 * 3
"""Bytes per micro-batch of a step: its loss, and what the processes exchange."""
_NO_MODEL: Final = 1 << 60
"""A number of values beyond that of any model; a task may ask for more than any machine holds."""
_MALFORMED: Final = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Bytes of device memory at the peak of each phase."""

    trained: int
    """Number of trained values."""
    encode: int
    train: int
    validation: int
    recompute: bool
    """True if gradient checkpointing is used."""
    parameters: int
    """Number of parameters of the base model, of all components together."""

    @property
    def peak(self) -> int:
        """The peak of the whole job, in bytes."""
        return max(self.encode, self.train, self.validation)


def predict(base: BaseModel, task: Task, *, recompute: bool, device: str) -> Prediction | None:
    """Predict what a task takes on a `device` of type cuda or cpu; None where the model's configurations do not say.

    For the published models it is within 15% of what torch allocates, as the tests check.
    """
    try:
        found = _predict(base, task, recompute=recompute, is_cuda=device == "cuda")
    except _MALFORMED:  # loading the model reports what is wrong with it
        return None
    return found if found.peak > 0 and found.parameters < _NO_MODEL else None


def _predict(base: BaseModel, task: Task, *, recompute: bool, is_cuda: bool) -> Prediction:
    args, family, width = task.train_args, base.family, _BYTES[task.mixed_precision]
    denoiser, texts = METHODS[task.training_type].tapes(family, task, width, 4 if is_cuda else width)
    images = family.footprint(
        base.config,
        Workload(
            batch=args.batch_size,
            resolution=args.resolution,
            caption_chunks=task.dataset.caption_chunks,
            value_bytes=width,
            trains_text_encoders=args.train_text_encoder,
            denoiser=denoiser,
            text_encoders=texts,
        ),
    )
    trained = denoiser.trained + texts.trained
    # The values themselves, and the optimizer's slots, stay after training.
    value_bytes = 4 * (1 + len(OPTIMIZERS[args.optimizer].slots))
    lasting = trained * (value_bytes + _COPY_BYTES[task.mixed_precision])
    frozen, text_bytes = denoiser.parameters * width, texts.parameters * width
    encoders = text_bytes + images.weight_bytes
    # The frozen encoders leave a GPU while it trains.
    staying = encoders if not is_cuda else text_bytes * args.train_text_encoder
    training = staying + trained * (value_bytes + _GRADIENT_BYTES) + denoiser.peak(recompute=recompute) + texts.kept
    training += args.gradient_accumulation_steps * _MICRO_BATCH_BYTES
    return Prediction(
        trained=trained,
        encode=frozen + encoders + lasting + images.encode_bytes,
        train=frozen + training,
        validation=frozen + encoders + lasting + images.decode_bytes,
        recompute=recompute,
        parameters=denoiser.parameters + texts.parameters + images.parameters,
    )


def wants_recompute(base: BaseModel, task: Task, *, device: str, available: int | None) -> bool:
    """Return whether to train with gradient checkpointing: as the task says, or if it would not fit without.

    Args:
        base: the base model.
        task: the task.
        device: cuda or cpu.
        available: bytes of memory on that device; None is unknown.
    """
    asked = task.train_args.gradient_checkpointing
    if asked != "auto":
        return bool(asked)
    plain = predict(base, task, recompute=False, device=device)
    # The bits are the same, so where the memory is unknown, gradient checkpointing costs only time.
    return plain is None or available is None or plain.train > SPARE * available


def gib(count: int) -> str:
    """Format a number of bytes for a person."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.0f} MiB"

"""How much memory a job takes, predicted before it runs, from configurations alone. No torch.

The figures are of tensors. What they leave out: CUDA's own context (about 0.5 GiB), libraries' workspaces, what an
allocator cannot use, and on a CPU the program itself (about 0.6 GiB).
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
"""The share of the available memory that tensors may be predicted to take."""
_BYTES: Final = {"no": 4, "fp16": 2, "bf16": 2}
_GRADIENT_BYTES: Final = 4 * 3
"""Bytes of each trained value for the step's gradients and twice those of a micro-batch. In 16 bits these are half as
wide until the activations are gone, which makes up for the working copy."""
_COPY_BYTES: Final = {"no": 0, "fp16": 2, "bf16": 2}
"""Bytes of each trained value's working copy."""
_MICRO_BATCH_BYTES: Final = 4 * 3
"""Bytes of each micro-batch of a step: its loss, and what the processes tell each other."""
_NO_MODEL: Final = 1 << 60
"""Values that no model has; a task may well ask for more than any machine holds."""
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
    """Whether with gradient checkpointing."""
    parameters: int
    """Number of parameters of the base model, all components together."""

    @property
    def peak(self) -> int:
        """The peak of the whole job."""
        return max(self.encode, self.train, self.validation)


def predict(base: BaseModel, task: Task, *, recompute: bool, device: str) -> Prediction | None:
    """What a task takes on a `device` of type cuda or cpu; None where the model's configurations do not say.

    For the published models within 15% of what torch holds, as the tests find.
    """
    try:
        found = _predict(base, task, recompute=recompute, is_cuda=device == "cuda")
    except _MALFORMED:  # loading the model says what is wrong with it
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
    # The values themselves, and what the optimizer remembers of each, stay after training.
    value_bytes = 4 * (1 + len(OPTIMIZERS[args.optimizer].slots))
    lasting = trained * (value_bytes + _COPY_BYTES[task.mixed_precision])
    frozen, text_bytes = denoiser.parameters * width, texts.parameters * width
    encoders = text_bytes + images.weight_bytes
    # The frozen encoders leave the device while it trains, where there is another place for them.
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
    """Whether to train with gradient checkpointing: as the task says, or where it would not fit without.

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
    # The bits are the same, so where nothing is known the careful way costs only time.
    return plain is None or available is None or plain.train > SPARE * available


def gib(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.0f} MiB"

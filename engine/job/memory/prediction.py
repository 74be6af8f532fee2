"""How much memory a job takes, predicted before it runs, from configurations alone. No torch.

The figures are of tensors. What they leave out: CUDA's own context (about 0.5 GiB), libraries' workspaces, what an
allocator cannot use, and on a CPU the program itself (about 0.6 GiB).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from engine.job.memory import encoder_footprint, footprint
from engine.job.memory.footprint import Tape
from engine.models.base_model import BaseModel
from engine.task.task import DEFAULT_TARGETS, Task
from engine.training.methods.lora.targets import TEXT_TARGETS, is_target
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
    """Number of trained values of the adapter."""
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
    args, width = task.train_args, _BYTES[task.mixed_precision]
    vae = base.config("vae")
    latent_side = max(1, args.resolution // 2 ** (len(vae["block_out_channels"]) - 1))
    vae_width = 4 if base.family.has_float32_vae(base.config) else width
    unet_tape = Tape(
        is_adapted=is_target(task.lora.target_modules or DEFAULT_TARGETS),
        rank=task.lora.rank,
        width=width,
        norm_width=4 if is_cuda else width,
        is_dropping=task.lora.dropout > 0,
    )
    texts = replace(unet_tape, is_adapted=is_target(TEXT_TARGETS if args.train_text_encoder else ()))
    lengths = [77]
    for component in (name for name in base.family.weighted if name.startswith("text_encoder")):
        config = base.config(component)
        encoder_footprint.text_encoder(config, texts, batch=args.batch_size * task.dataset.caption_chunks)
        lengths.append(int(config.get("max_position_embeddings", 77)))
    footprint.unet(
        base.config("unet"),
        unet_tape,
        batch=args.batch_size,
        side=latent_side,
        text_length=max(lengths) * task.dataset.caption_chunks,
        text_is_traced=args.train_text_encoder,
    )
    trained = unet_tape.lora + texts.lora
    # The values themselves, and what the optimizer remembers of each, stay after training.
    value_bytes = 4 * (1 + len(OPTIMIZERS[args.optimizer].slots))
    lasting = trained * (value_bytes + _COPY_BYTES[task.mixed_precision])
    denoiser, text_bytes = unet_tape.parameters * width, texts.parameters * width
    encoders = text_bytes + encoder_footprint.vae_parameters(vae) * vae_width
    # The frozen encoders leave the device while it trains, where there is another place for them.
    staying = encoders if not is_cuda else text_bytes * args.train_text_encoder
    training = staying + trained * (value_bytes + _GRADIENT_BYTES) + unet_tape.peak(recompute=recompute) + texts.kept
    training += args.gradient_accumulation_steps * _MICRO_BATCH_BYTES
    return Prediction(
        trained=trained,
        encode=denoiser
        + encoders
        + lasting
        + encoder_footprint.vae_peak(vae, args.resolution, vae_width, decode=False),
        train=denoiser + training,
        validation=denoiser
        + encoders
        + lasting
        + encoder_footprint.vae_peak(vae, args.resolution, vae_width, decode=True),
        recompute=recompute,
        parameters=unet_tape.parameters + texts.parameters + encoder_footprint.vae_parameters(vae),
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

"""The training's settings and length: `train_args`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.task.key import Chain, key
from engine.task.keys.optimizer import AdamArgs, LrScheduler, OptimizerName
from engine.task.plan.extent import Extent

PredictionType = Literal["epsilon", "v_prediction"]
LossType = Literal["l2", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
TimestepSampling = Literal["uniform", "logit_normal", "mode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestepBias:
    strategy: Literal["none", "earlier", "later", "range"] = key(
        "none",
        "Strategy",
        "Which timesteps are drawn more or less often than the others: none, the `earlier` (less noise) or `later` "
        "portion of them, or the `range` from `begin` to `end`.",
    )
    multiplier: float = key(
        1.0,
        "Multiplier",
        "How many times as often these timesteps are drawn as each of the others.",
        exclusiveMinimum=0,
        maximum=1e30,
    )
    begin: int = key(0, "Begin", "The first timestep of the range.", minimum=0)
    end: int = key(1000, "End", "The timestep after the last one of the range.", minimum=1)
    portion: float = key(
        0.25, "Portion", "Which share of all timesteps is earlier or later.", exclusiveMinimum=0, maximum=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainArgs:
    learning_rate: float = key(
        1e-4,
        "Learning rate",
        "The optimizer's learning rate, before `scale_lr` and the schedule.",
        chain=Chain.RECORDED,
        exclusiveMinimum=0,
    )
    batch_size: int = key(16, "Batch size", "Images per micro-batch.", chain=Chain.AGREED | Chain.RECORDED, minimum=1)
    gradient_accumulation_steps: int = key(
        1,
        "Gradient accumulation steps",
        "Micro-batches per process and optimizer step.",
        chain=Chain.RECORDED,
        minimum=1,
    )
    prediction_type: PredictionType | None = key(
        None,
        "Prediction type",
        "What the model predicts; null takes what the model's scheduler says.",
        chain=Chain.RECORDED,
    )
    max_grad_norm: float = key(
        1.0,
        "Maximal gradient norm",
        "Gradients with a larger norm are scaled down to it; 0 switches clipping off.",
        chain=Chain.RECORDED,
        minimum=0,
    )
    num_train_epochs: int = key(
        1,
        "Epochs of this task",
        "How many epochs **this task** trains.",
        chain=Chain.UNRECORDED,
        yields_to="num_train_steps",
        minimum=1,
    )
    num_train_steps: int | None = key(
        None,
        "Steps of this task",
        "How many optimizer steps **this task** trains; null takes `num_train_epochs`.",
        chain=Chain.UNRECORDED,
        minimum=1,
    )
    max_train_epochs: int = key(
        1,
        "Epochs of the whole training",
        "How many epochs the **whole training** takes.",
        chain=Chain.RECORDED,
        yields_to="max_train_steps",
        minimum=1,
    )
    max_train_steps: int | None = key(
        None,
        "Steps of the whole training",
        "How many optimizer steps the **whole training** takes; null takes `max_train_epochs`. "
        "The learning-rate schedule spans them.",
        chain=Chain.RECORDED,
        minimum=1,
    )
    scale_lr: bool = key(
        True,
        "Scale the learning rate",
        "Multiply the learning rate by processes × gradient accumulation steps × batch size.",
        chain=Chain.RECORDED,
    )
    resolution: int = key(
        512,
        "Resolution",
        "The side in pixels of the square that is trained on: images are resized (shorter side), then cropped to it. "
        "With buckets a multiple of 64, at least 128.",
        chain=Chain.AGREED | Chain.RECORDED,
        minimum=64,
        multipleOf=8,
    )
    num_frames: int = key(
        1,
        "Frames",
        "For video models: how many frames of each clip are trained on; 1 trains on images. Each model has its own "
        "numbers: 8k + 1 or 4k + 1. A shorter clip is left out, or with `transforms.buckets` "
        "trained with fewer frames.",
        chain=Chain.AGREED_IF_SET,
        minimum=1,
        maximum=100_000,
    )
    noise_offset: float = key(
        0.0,
        "Noise offset",
        "The scale of noise that is constant over an image; 0 is off.",
        chain=Chain.RECORDED,
        minimum=0,
    )
    snr_gamma: float | None = key(
        None,
        "Min-SNR gamma",
        "Min-SNR loss weighting (arXiv:2303.09556, which recommends 5.0); null is off.",
        chain=Chain.RECORDED,
        exclusiveMinimum=0,
    )
    train_text_encoder: bool = key(
        False,
        "Train the text encoder",
        "Train the text encoders, too: a LoRA on `q_proj`, `k_proj`, `v_proj`, `out_proj`, of the same rank and "
        "strength, or with the training type `full` all their weights.",
        chain=Chain.AGREED_IF_SET,
    )
    text_encoder_learning_rate: float | None = key(
        None,
        "Learning rate of the text encoder",
        "The text encoders' learning rate, before `scale_lr` and the schedule; null takes `learning_rate`.",
        needs="train_text_encoder",
        exclusiveMinimum=0,
    )
    min_timestep: int = key(
        0, "First timestep", "The smallest timestep that is trained; 0 has the least noise.", minimum=0
    )
    max_timestep: int | None = key(
        None,
        "End of the timesteps",
        "Timesteps below it are trained; null takes all that the model has, mostly 1000.",
        minimum=1,
    )
    timestep_bias: TimestepBias = key(
        TimestepBias, "Timestep bias", "Which timesteps are drawn more or less often than the others."
    )
    timestep_sampling: TimestepSampling | None = key(
        None,
        "Timestep sampling",
        "How often a flow-matching model's timesteps are drawn (arXiv:2403.03206, section 3.1): all alike, or those in "
        "the middle more often, by a logit-normal distribution or by one with heavier ends. Null is what is usual for "
        "the base model; `--plan` names it.",
    )
    logit_mean: float = key(
        0.0,
        "Mean of the logits",
        "With `logit_normal`: above 0, timesteps with less noise are drawn more often, below 0 those with more, as "
        "with `--logit_mean` of Diffusers' scripts.",
        minimum=-10,
        maximum=10,
    )
    logit_std: float = key(
        1.0,
        "Standard deviation of the logits",
        "With `logit_normal`: the smaller, the more the middle is preferred.",
        minimum=0.01,
        maximum=100,
    )
    mode_scale: float = key(
        1.29,
        "Mode scale",
        "With `mode`: above 0, the middle is preferred, below 0 the ends; 0 is uniform.",
        minimum=-1,
        maximum=1.75,
    )
    flow_shift: Literal["resolution"] | float | None = key(
        None,
        "Shift",
        "How far a flow-matching model's noise levels are shifted towards more noise (arXiv:2403.03206, section "
        "5.3.2): a factor, 1 for none, or `resolution`, a factor that grows with the size of the image. Null is what "
        "the base model's scheduler says. Validation images are always drawn as the base model's scheduler says.",
        minimum=0.001,
        maximum=1000,
    )
    guidance_scale: float = key(
        1.0,
        "Guidance scale in training",
        "The guidance scale that a guidance-distilled model, such as FLUX.1 dev, is told in training. It is not that "
        "of validation images, `validation.guidance_scale`.",
        minimum=0,
        maximum=100,
    )
    zero_terminal_snr: bool = key(
        False,
        "Zero terminal SNR",
        "Rescale the noise schedule so that the last timestep is pure noise (arXiv:2305.08891), for the training and "
        "for validation images. The prediction type must be `v_prediction`.",
        chain=Chain.AGREED_IF_SET,
    )
    loss_type: LossType = key(
        "l2",
        "Loss",
        "`l2` is the squared error; `huber` and `smooth_l1` are a pseudo-Huber loss (arXiv:2403.16728), on which "
        "outliers have less influence: `huber` is near the squared error for small errors, `smooth_l1` near twice the "
        "absolute error for large ones.",
    )
    huber_schedule: HuberSchedule = key(
        "snr",
        "Huber schedule",
        "How the Huber threshold depends on the timestep: not at all, falling exponentially from 1 to `huber_c`, or "
        "by the signal-to-noise ratio.",
    )
    huber_c: float = key(
        0.1,
        "Huber threshold",
        "The error around which the Huber loss turns from squared to linear, at its smallest.",
        exclusiveMinimum=0,
        maximum=1e30,
    )
    gradient_checkpointing: Literal["auto"] | bool = key(
        "auto",
        "Gradient checkpointing",
        "Recompute the denoiser's activations in the backward pass instead of keeping them: less memory, more time, "
        "the same result. `auto` does so if the predicted peak of memory would not fit otherwise.",
        chain=Chain.NO_EFFECT,
    )
    offload: Literal["auto"] | bool = key(
        "auto",
        "Offload",
        "Keep the denoiser's blocks and their inputs in main memory, and copy each to the GPU when it computes: less "
        "of the GPU's memory, more time, the same result. `auto` does so if the predicted peak would not fit "
        "otherwise, the inputs first. For transformers, with gradient checkpointing; where all weights are trained, "
        "`auto` keeps only the inputs there, and true is refused.",
        chain=Chain.NO_EFFECT,
    )
    ema_decay: float | None = key(
        None,
        "Decay of the moving average",
        "Keep an exponential moving average of the trained weights, and publish it in their place; null is off. The "
        "decay of the step after i steps is min(`ema_decay`, (1 + i) / (10 + i)).",
        exclusiveMinimum=0,
        exclusiveMaximum=1,
    )
    optimizer: OptimizerName = key(
        "adamw",
        "Optimizer",
        "The optimizer; `adam_args` has its constants. The [cookbook](cookbook.md#optimizers) says when to take which, "
        "and with which learning rate.",
        chain=Chain.AGREED_IF_SET,
    )
    lr_scheduler: LrScheduler = key(
        LrScheduler,
        "Learning-rate schedule",
        "How the learning rate changes over the whole training.",
        chain=Chain.RECORDED,
    )
    adam_args: AdamArgs = key(AdamArgs, "AdamW", "The optimizer's arguments.", chain=Chain.RECORDED)

    @property
    def extent(self) -> Extent:
        """The size of what a visit shows, where no bucket decides it."""
        return Extent(self.resolution, self.resolution, self.num_frames)

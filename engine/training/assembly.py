"""Assemble a trainer from a task, a base model in memory, and its trained parameters."""

from __future__ import annotations

import torch

from engine.models.family import PRECISIONS, Batch, Family
from engine.models.objectives.objective import LossOptions
from engine.task.plan.learning_rates import base_learning_rate, base_text_encoder_rate
from engine.task.plan.steps import StepRange
from engine.task.task import Task
from engine.training.distributed.processes import Processes
from engine.training.ema import Ema
from engine.training.encoding.batches import BatchMaker
from engine.training.gradients.by_tensor import TensorGradients
from engine.training.gradients.flat import FlatGradients
from engine.training.gradients.gradients import Gradients
from engine.training.methods.method import Trainable
from engine.training.optimizers import registry as optimizers
from engine.training.trainer import StepOptions, Trainer


def assemble(
    task: Task,
    step_range: StepRange,
    family: Family,
    trainable: Trainable,
    device: torch.device,
    *,
    processes: Processes | None = None,
) -> Trainer:
    """Return the trainer of a task at its first step, with the optimizer and the loss that the task asks for.

    Args:
        task: the task.
        step_range: its slice of the training.
        family: the base model, prepared by `methods.registry.attach`.
        trainable: what is trained of it.
        device: the device to train on.
        processes: the processes that share the micro-batches of a step; None if this is the only one.
    """
    args = task.train_args
    gradients = _gradients(trainable, processes or Processes())
    owned = gradients.owned
    groups = [{name: own for name, own in group.items() if name in owned} for group in trainable.groups]
    rates = (base_learning_rate(args, step_range.micro_batches), base_text_encoder_rate(args, step_range.micro_batches))
    options = StepOptions(
        base_rates=rates[: len(groups)],
        lr_scheduler=args.lr_scheduler,
        max_grad_norm=args.max_grad_norm,
        scales_loss=task.mixed_precision == "fp16",
    )
    loss_options = LossOptions.of(args)

    def loss(batch: Batch) -> torch.Tensor:
        return family.loss(batch, loss_options)

    return Trainer(
        trainable,
        gradients,
        optimizers.make(groups, args, is_whole_model=trainable.is_whole_model, total=gradients.total),
        BatchMaker(
            family,
            device,
            dtype=PRECISIONS[task.mixed_precision],
            seed=task.seed,
            extent=args.extent,
            noise_offset=args.noise_offset,
        ),
        loss,
        layout=optimizers.OPTIMIZERS[args.optimizer].layout,
        options=options,
        step_range=step_range,
        num_processes=processes.world_size if processes else 1,
        ema=None if args.ema_decay is None else Ema(owned, args.ema_decay),
    )


def _gradients(trainable: Trainable, processes: Processes) -> Gradients:
    if trainable.is_whole_model:
        return TensorGradients(trainable.parameters, processes)
    return FlatGradients(trainable.parameters, processes)

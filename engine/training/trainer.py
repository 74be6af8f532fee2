"""The training loop. An optimizer step is the ordered sum of its micro-batches' gradients, then one update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

import torch

from engine.core.errors import CheckpointError, NonFiniteError
from engine.models.family import Batch
from engine.results.history import StepReport
from engine.results.outcome import Clock
from engine.results.state import LossScale, TrainState
from engine.task.plan.steps import StepRange
from engine.task.task import LrScheduler
from engine.training.distributed.group import Processes
from engine.training.encoding.batches import BatchMaker, Prepared
from engine.training.encoding.visit_encoder import Example
from engine.training.methods.method import Trainable
from engine.training.optimizers import loss_scale
from engine.training.optimizers.clipping import clip
from engine.training.optimizers.lr_schedule import schedule_factor
from engine.training.optimizers.optimizer import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """The task's options for a step."""

    base_rates: Sequence[float]
    """The learning rate of each optimizer group, before the schedule's factor."""
    lr_scheduler: LrScheduler
    max_grad_norm: float
    scales_loss: bool
    """True if the loss is scaled, as fp16 requires."""


class Trainer:
    """Trains a step at a time. Holds everything that changes in training: parameters, optimizer, loss scale, step."""

    def __init__(
        self,
        trainable: Trainable,
        optimizer: Optimizer,
        batches: BatchMaker,
        loss: Callable[[Batch], torch.Tensor],
        *,
        options: StepOptions,
        step_range: StepRange,
        processes: Processes | None = None,
    ) -> None:
        """
        Args:
            trainable: what is trained.
            optimizer: the optimizer of the trainable's groups.
            batches: makes the micro-batches.
            loss: returns the loss of a micro-batch, a float32 scalar with gradients.
            options: the task's options for a step.
            step_range: the task's slice of the training.
            processes: the processes that share the micro-batches of a step; None if this is the only one.
        """
        self._trainable = trainable
        self._optimizer = optimizer
        self._batches = batches
        self._loss = loss
        self._options = options
        self._step_range = step_range
        self._ahead: Prepared | None = None
        self._loss_scale = LossScale() if options.scales_loss else None
        self._processes = processes or Processes()
        self.step = step_range.start_step

    def state(self) -> TrainState:
        """Return everything that an exact continuation needs. Not to be called within a step.

        The tensors are no copies, so that saving needs no memory: use them before the next step.
        """
        return TrainState(
            global_step=self.step,
            trained=self._trainable.state(),
            optimizer=self._optimizer.state(),
            start=self._trainable.start,
            loss_scale=self._loss_scale,
        )

    def restore(self, state: TrainState) -> None:
        """Continue from `state`.

        Raises:
            CheckpointError: the state does not fit this training.
        """
        if (state.loss_scale is None) != (self._loss_scale is None):
            raise CheckpointError("the checkpoint's loss scale does not fit its precision; use another checkpoint")
        self._trainable.restore(state.trained)
        self._optimizer.restore(state.optimizer)
        self._loss_scale = state.loss_scale
        self.step = state.global_step

    def train_step(self, examples: Sequence[Example], coming: Sequence[Example] = ()) -> StepReport:
        """Train one optimizer step on the examples of this process's micro-batches (K x B if it is the only process).

        Args:
            examples: the examples of this step.
            coming: the examples of the next step, if they are encoded already: its first micro-batch is prepared
                while the device computes, before the host waits for the device.

        Raises:
            NonFiniteError: before the update, so the state is still the last good one.
        """
        total: torch.Tensor | None = None
        num_micro_batches = len(examples) // self._step_range.batch_size * self._processes.world_size
        parameters = self._trainable.parameters
        losses = torch.empty(num_micro_batches, device=next(iter(parameters.values())).device)
        with self._trainable.step() as trained:
            # Summed in the order of the micro-batches: the bits do not depend on which process computed them.
            for k, row in enumerate(self._micro_batches(examples, coming, trained)):
                own = row[:-1]
                total = own.clone() if total is None else total.add_(own)
                losses[k] = row[-1]
        assert total is not None, "a step has a micro-batch"
        total.div_(num_micro_batches * (self._loss_scale.scale if self._loss_scale else 1.0))
        gradients = _unflatten(total, list(parameters.values()))
        norm = clip(gradients, self._options.max_grad_norm)
        mean_loss, grad_norm = torch.stack([losses.mean(), norm]).tolist()
        rates = self._rates()
        if self._is_update_wanted(mean_loss, grad_norm):
            self._optimizer.update(dict(zip(parameters, gradients, strict=True)), rates)
            self._trainable.refresh()
        self.step += 1
        return StepReport(self.step, mean_loss, rates[0], grad_norm if math.isfinite(grad_norm) else None)

    def _micro_batches(
        self, examples: Sequence[Example], coming: Sequence[Example], trained: Sequence[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Yield all gradients and then the loss, in one float32 tensor, for each micro-batch of the step in order."""
        size = self._step_range.batch_size
        # One at a time: the micro-batches of a step may not all fit into memory.
        parts = (examples[start : start + size] for start in range(0, len(examples), size))
        for part, following in pairwise(chain(parts, (coming[:size],))):
            prepared = self._prepared(part)
            with self._trainable.micro_batch(prepared.address):
                loss, own = self._gradients(self._batches.complete(prepared), trained)
            yield from self._processes.gather(_row(own, loss))
            # Meanwhile a GPU is still computing.
            self._ahead = self._batches.prepare(following) if following else None

    def _prepared(self, examples: Sequence[Example]) -> Prepared:
        """Return the micro-batch of these examples, which may have been prepared ahead."""
        ahead, self._ahead = self._ahead, None
        return ahead if ahead and ahead.is_of(examples) else self._batches.prepare(examples)

    def _rates(self) -> list[float]:
        """Return the learning rate of each optimizer group in the coming step.

        Raises:
            NonFiniteError: a rate is so high that an update may overflow float32.
        """
        base_rates, scheduler = self._options.base_rates, self._options.lr_scheduler
        factor = schedule_factor(
            base_rates[0],
            scheduler.lr_scheduler,
            self.step,
            warmup_steps=scheduler.lr_warmup_steps,
            max_steps=self._step_range.max_steps,
        )
        rates = [base * factor for base in base_rates]
        if not all(rate <= _MAX_RATE for rate in rates):  # also if a rate is NaN
            raise NonFiniteError(f"the learning rate of step {self.step + 1} is {max(rates):g}; {_ADVICE}")
        return rates

    def _gradients(self, batch: Batch, trained: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return a micro-batch's loss (detached), and its gradients scaled by the fp16 loss scale."""
        loss = self._loss(batch)
        scaled = loss * self._loss_scale.scale if self._loss_scale else loss
        found = torch.autograd.grad(scaled, trained, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]
        return loss.detach(), gradients

    def _is_update_wanted(self, loss: float, grad_norm: float) -> bool:
        """Return False if the fp16 loss scaler skips the step: a gradient overflowed, but not the loss."""
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss of step {self.step + 1} is {loss}; {_ADVICE}")
        finite = math.isfinite(grad_norm)
        if self._loss_scale is None:
            if not finite:
                raise NonFiniteError(f"the gradient's norm at step {self.step + 1} is {grad_norm}; {_ADVICE}")
            return True
        updated = loss_scale.updated(self._loss_scale, finite=finite)
        if loss_scale.is_collapsed(updated):
            raise NonFiniteError(f"the fp16 loss scale fell below 1 at step {self.step + 1}; {_ADVICE}")
        self._loss_scale = updated
        return finite


_MAX_RATE: Final = 1e30
"""The learning rate above which one update may overflow float32."""
_ADVICE: Final = "the state before this step is kept; try a lower learning_rate, or mixed_precision bf16 or no"


def _row(gradients: Sequence[torch.Tensor], loss: torch.Tensor) -> torch.Tensor:
    """Return all values in one float32 tensor of shape (n,), the loss last. The gradients have one dtype."""
    flat = [gradient.reshape(-1) for gradient in gradients]
    if flat[0].dtype != torch.float32:
        flat = [torch.cat(flat).to(torch.float32)]  # one cast for all
    return torch.cat([*flat, loss.reshape(1)])


def _unflatten(flat: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Return views of `flat` with the parameters' shapes, in their order."""
    pieces = torch.split(flat, [parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]


def train(
    trainer: Trainer,
    step_range: StepRange,
    examples: Callable[[int], Sequence[Example]],
    after_step: Callable[[StepReport], bool],
    clock: Clock,
    *,
    at_hand: Callable[[int], Sequence[Example]] = lambda step: (),
) -> None:
    """Train from the trainer's step to `step_range.stop_step`, or until `after_step` ends it.

    Args:
        examples: returns the examples of a step, which may require encoding them.
        after_step: called after each step, with the trainer between two steps; returns True to end there.
        at_hand: returns the examples of a step if they are encoded already, else none. Called once per step.
    """
    visited: Sequence[Example] = ()
    while trainer.step < step_range.stop_step:
        if not visited:
            with clock.phase("encode"):
                visited = examples(trainer.step)
        coming = at_hand(trainer.step + 1)
        with clock.phase("train"):
            report = trainer.train_step(visited, coming)
        if after_step(report):
            return
        visited = coming

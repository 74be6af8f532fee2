"""The training loop. An optimizer step is the ordered sum of its micro-batches' gradients, then one update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

import torch

from engine.core.errors import CheckpointError, NonFiniteError
from engine.models.family import Batch
from engine.results.history import StepReport
from engine.results.outcome import Clock
from engine.results.state import LossScale, OptimizerState, TrainState
from engine.task.plan.steps import StepRange
from engine.task.task import LrScheduler
from engine.training.ema import Ema
from engine.training.encoding.batches import BatchMaker, Prepared
from engine.training.encoding.visit_encoder import Example
from engine.training.gradients.gradients import Gradients
from engine.training.methods.method import Tensors, Trainable
from engine.training.methods.swapping import swapped
from engine.training.optimizers import clipping, loss_scale
from engine.training.optimizers.clipping import clip_factor
from engine.training.optimizers.layout import Layout
from engine.training.optimizers.lr_schedule import schedule_factor
from engine.training.optimizers.optimizer import Optimizer
from engine.training.optimizers.slots import expected_of


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
        gradients: Gradients,
        optimizer: Optimizer,
        batches: BatchMaker,
        loss: Callable[[Batch], torch.Tensor],
        *,
        layout: Layout,
        options: StepOptions,
        step_range: StepRange,
        num_processes: int,
        ema: Ema | None,
    ) -> None:
        """
        Args:
            trainable: what is trained.
            gradients: sums the gradients of the trainable's parameters over all processes.
            optimizer: the optimizer of the parameters that this process owns, in the trainable's groups.
            batches: makes the micro-batches.
            loss: returns the loss of a micro-batch, a float32 scalar with gradients.
            layout: the optimizer's slots.
            options: the task's options for a step.
            step_range: the task's slice of the training.
            num_processes: the number of processes that share the micro-batches of a step.
            ema: the moving average of the parameters that this process owns; None if the task asks for none.
        """
        self._trainable = trainable
        self._gradients = gradients
        self._optimizer = optimizer
        self._layout = layout
        self._batches = batches
        self._loss = loss
        self._options = options
        self._step_range = step_range
        self._num_processes = num_processes
        self._ema = ema
        self._is_averaged = False
        self._ahead: Prepared | None = None
        self._loss_scale = LossScale() if options.scales_loss else None
        self.step = step_range.start_step

    def state(self) -> TrainState:
        """Return everything that an exact continuation needs. Not to be called within a step.

        The tensors are no copies, so that saving needs no memory: use them before the next step. What another process
        has is fetched when it is read: all processes then read all sources, in the order of their names in the file,
        and the state in the first process is the whole one. Not in that case, it may be called inside `averaged`.
        """
        trained, shadow = self._trainable.state(), self._ema.shadow if self._ema else {}
        if self._is_averaged:
            assert len(self._gradients.owned) == len(trained), "the other processes' own values are not here"
            trained, shadow = shadow, trained
        optimizer = self._optimizer.state()
        slots = {
            slot: self._gradients.sources(optimizer.slots.get(slot, {}), expected)
            for slot, expected in expected_of(self._layout, self._trainable.parameters).items()
        }
        return TrainState(
            global_step=self.step,
            trained=trained,
            optimizer=OptimizerState(slots, optimizer.updates, optimizer.numbers),
            start=self._trainable.start,
            loss_scale=self._loss_scale,
            ema=self._gradients.sources(shadow, self._trainable.parameters) if self._ema else {},
        )

    def restore(self, state: TrainState) -> None:
        """Continue from `state`. Of tensors that other processes own, nothing is kept but the parameters.

        Raises:
            CheckpointError: the state does not fit this training.
        """
        if (state.loss_scale is None) != (self._loss_scale is None):
            raise CheckpointError("the checkpoint's loss scale does not fit its precision; use another checkpoint")
        if bool(state.ema) != (self._ema is not None):
            raise CheckpointError("the checkpoint's moving average does not fit train_args.ema_decay")
        self._trainable.restore(state.trained)
        slots = {slot: self._kept(tensors) for slot, tensors in state.optimizer.slots.items()}
        self._optimizer.restore(OptimizerState(slots, state.optimizer.updates, state.optimizer.numbers))
        if self._ema is not None:
            self._ema.restore(self._kept(state.ema))
        self._loss_scale = state.loss_scale
        self.step = state.global_step

    def _kept(self, tensors: Tensors) -> Tensors:
        """Return the tensors that are not another process's, and those that belong to no parameter, which are wrong."""
        others = self._trainable.parameters.keys() - self._gradients.owned.keys()
        return {name: tensor for name, tensor in tensors.items() if name not in others}

    @contextmanager
    def averaged(self, *, is_last: bool = False) -> Iterator[None]:
        """Give the parameters their averaged values for a while; without `train_args.ema_decay` it does nothing.

        All processes enter and leave it. It takes no memory: values are swapped, and each process sends round the
        averages that it has, and afterwards the parameters' own values, which return exactly.

        Args:
            is_last: True if no step follows: then the parameters' own values need not return in all processes.
        """
        if self._ema is None:
            yield
            return
        self._is_averaged = True
        try:
            with swapped(self._gradients.owned, self._ema.shadow):
                self._gradients.share_parameters()
                self._trainable.refresh()
                yield
            if not is_last:
                self._gradients.share_parameters()  # not after an error: the other processes would not answer
        finally:
            self._is_averaged = False
            self._trainable.refresh()

    def end(self) -> None:
        """Free the optimizer's state after the last step is saved: what draws and publishes has its memory."""
        del self._optimizer

    def train_step(self, examples: Sequence[Example], coming: Sequence[Example] = ()) -> StepReport:
        """Train one optimizer step on the examples of this process's micro-batches (K x B if it is the only process).

        Args:
            examples: the examples of this step.
            coming: the examples of the next step, if they are encoded already: its first micro-batch is prepared
                while the device computes, before the host waits for the device.

        Raises:
            NonFiniteError: before the update, so the state is still the last good one.
        """
        num_micro_batches = len(examples) // self._step_range.batch_size * self._num_processes
        scale = self._loss_scale.scale if self._loss_scale else 1.0
        self._optimizer.begin()
        if self._ema is not None:
            self._ema.begin()
        with (
            self._trainable.step() as trained,
            self._gradients.step(trained, num_micro_batches) as total,
        ):
            for prepared in self._micro_batches(examples, coming):
                with self._trainable.micro_batch(prepared.address):
                    loss = self._loss(self._batches.complete(prepared))
                    total.add(loss, loss * scale if self._loss_scale else loss)
        gradients = total.divided(num_micro_batches * scale)
        norm = self._gradients.norm(gradients)
        # Read from the device at once, before the update.
        values = torch.stack([total.losses.mean(), norm, clip_factor(norm, self._options.max_grad_norm)])
        mean_loss, grad_norm, factor = values.tolist()
        rates = self._rates()
        if self._is_update_wanted(mean_loss, grad_norm):
            clipping.scale(list(gradients.values()), factor)
            self._optimizer.update(gradients, rates)
            self._gradients.share_parameters()
            self._trainable.refresh()
        if self._ema is not None:
            self._ema.update(self.step)
        self.step += 1
        return StepReport(self.step, mean_loss, rates[0], grad_norm if math.isfinite(grad_norm) else None)

    def _micro_batches(self, examples: Sequence[Example], coming: Sequence[Example]) -> Iterator[Prepared]:
        """Yield this process's micro-batches of the step in order, and prepare each while the one before is computed.

        The first one of the next step is prepared, too, if its examples are among the `coming` ones.
        """
        size = self._step_range.batch_size
        # One at a time: the micro-batches of a step may not all fit into memory.
        parts = (examples[start : start + size] for start in range(0, len(examples), size))
        for part, following in pairwise(chain(parts, (coming[:size],))):
            yield self._prepared(part)
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

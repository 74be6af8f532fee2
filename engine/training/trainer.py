"""The loop: one optimizer step after the other, each the ordered sum of its canonical micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

import torch

from engine.core.errors import CheckpointError, NonFiniteError
from engine.models.family import PRECISIONS, Batch, Family
from engine.models.objectives.objective import LossOptions
from engine.results.history import StepReport
from engine.results.outcome import Clock
from engine.results.state import TrainState
from engine.task.plan.learning_rates import base_learning_rate, base_text_encoder_rate
from engine.task.plan.steps import StepRange
from engine.task.task import Task
from engine.training import optim
from engine.training.distributed.group import Processes
from engine.training.encoding.batches import BatchMaker, Prepared
from engine.training.encoding.visit_encoder import Example
from engine.training.methods.lora.adapter import Adapter
from engine.training.methods.lora.low_precision import WorkingCopy


@dataclass(frozen=True, slots=True)
class Notice:
    """What a process tells the others along with a gradient, so that all of them act on it after the same step."""

    signum: int = 0
    """The signal that it was sent, or 0."""
    save: bool = False
    """The progress is to be saved."""


class Trainer:
    """The adapter, its optimizer and the step reached: all that changes while training."""

    def __init__(
        self,
        task: Task,
        step_range: StepRange,
        family: Family,
        adapter: Adapter,
        device: torch.device,
        *,
        processes: Processes | None = None,
    ) -> None:
        """
        Args:
            processes: that share the micro-batches of a step out; None is this one alone.
        """
        self._task = task
        self._step_range = step_range
        self._family = family
        self._adapter = adapter
        self._working = WorkingCopy(adapter.parameters, adapter.fused, PRECISIONS[task.mixed_precision])
        self._batches = BatchMaker(
            family,
            device,
            dtype=PRECISIONS[task.mixed_precision],
            seed=task.seed,
            resolution=task.train_args.resolution,
            noise_offset=task.train_args.noise_offset,
        )
        self._ahead: Prepared | None = None
        groups = [{name: p for name, p in adapter.parameters.items() if family.spec.is_denoisers(name)}]
        self._base_rates = [base_learning_rate(task.train_args, step_range.micro_batches)]
        if task.train_args.train_text_encoder:
            groups.append({name: p for name, p in adapter.parameters.items() if not family.spec.is_denoisers(name)})
            self._base_rates.append(base_text_encoder_rate(task.train_args, step_range.micro_batches))
        self._optimizer = optim.make_optimizer(groups, task.train_args.adam_args)
        self._loss_options = LossOptions.of(task.train_args)
        self._loss_scale = optim.LossScale() if task.mixed_precision == "fp16" else None
        self._processes = processes or Processes()
        self.notice: Callable[[], Notice] = Notice
        """Called with each micro-batch; what comes of it is `noticed`."""
        self.step = step_range.start_step
        self.noticed = Notice()
        """What any process gave notice of during the last step: the same in all of them."""

    def state(self) -> TrainState:
        """Everything an exact continuation needs, after a whole number of steps."""
        return TrainState(
            global_step=self.step,
            adapter=self._adapter.state(),
            moments=optim.optimizer_state(self._optimizer, self._adapter.parameters),
            initial=self._adapter.initial,
            loss_scale=self._loss_scale,
        )

    def restore(self, state: TrainState) -> None:
        """Go on from `state` instead of from the beginning."""
        if (state.loss_scale is None) != (self._loss_scale is None):
            raise CheckpointError("the checkpoint's loss scale contradicts its precision; take another checkpoint")
        self._adapter.restore(state.adapter)
        optim.restore_optimizer(self._optimizer, self._adapter.parameters, state.moments)
        self._loss_scale = state.loss_scale
        self.step = state.global_step

    def train_step(self, examples: Sequence[Example], coming: Sequence[Example] = ()) -> StepReport:
        """One optimizer step over the examples of this process's micro-batches: all K x B where it is the only one.

        Args:
            examples: of this step.
            coming: of the next step, where they are at hand: its first micro-batch is prepared while the device
                computes, before the host waits for it.

        Raises:
            NonFiniteError: before the update, so that the state stays the last good one.
        """
        total: torch.Tensor | None = None
        num_micro_batches = len(examples) // self._step_range.batch_size * self._processes.world_size
        tails = torch.empty((_TAIL, num_micro_batches), device=next(iter(self._adapter.parameters.values())).device)
        with self._working.taken() as trained:
            # Summed in the order of the micro-batches: the same bits whoever computed them.
            for k, row in enumerate(self._micro_batches(examples, coming, trained)):
                own = row[:-_TAIL]
                total = own.clone() if total is None else total.add_(own)
                tails[:, k] = row[-_TAIL:]
        assert total is not None, "a step has a micro-batch"
        total.div_(num_micro_batches * (self._loss_scale.scale if self._loss_scale else 1.0))
        gradients = _unflatten(total, list(self._adapter.parameters.values()))
        norm = optim.clip(gradients, self._task.train_args.max_grad_norm)
        losses, signums, saves = tails
        mean_loss, grad_norm, signum, save = torch.stack([losses.mean(), norm, signums.max(), saves.max()]).tolist()
        self.noticed = Notice(int(signum), bool(save))
        rates = self._rates()
        if self._is_update_wanted(mean_loss, grad_norm):
            optim.update(self._optimizer, self._adapter.parameters, gradients, rates)
        self.step += 1
        return StepReport(self.step, mean_loss, rates[0], grad_norm if math.isfinite(grad_norm) else None)

    def _micro_batches(
        self, examples: Sequence[Example], coming: Sequence[Example], trained: list[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """For each micro-batch of the step, in order: all gradients in a row, then the loss and the notice; float32."""
        size = self._step_range.batch_size
        # One at a time: a step may have more micro-batches than memory has room for.
        parts = (examples[start : start + size] for start in range(0, len(examples), size))
        for part, following in pairwise(chain(parts, (coming[:size],))):
            prepared = self._prepared(part)
            with self._adapter.dropping.at(prepared.address):
                loss, own = self._gradients(self._batches.complete(prepared), trained)
            notice = self.notice()
            # Filled on the device: copying them there would wait for it.
            tail = [loss.reshape(1), loss.new_full((1,), notice.signum), loss.new_full((1,), notice.save)]
            yield from self._processes.gather(_row(own, tail))
            # A GPU is still at work on all that.
            self._ahead = self._batches.prepare(following) if following else None

    def _prepared(self, examples: Sequence[Example]) -> Prepared:
        """A micro-batch of them: the one that was prepared ahead, if it is that."""
        ahead, self._ahead = self._ahead, None
        return ahead if ahead and ahead.is_of(examples) else self._batches.prepare(examples)

    def _rates(self) -> list[float]:
        """The optimizer groups' learning rates in the coming step.

        Raises:
            NonFiniteError: so high that an update may leave float32.
        """
        scheduler = self._task.train_args.lr_scheduler
        factor = optim.schedule_factor(
            self._base_rates[0],
            scheduler.lr_scheduler,
            self.step,
            warmup_steps=scheduler.lr_warmup_steps,
            max_steps=self._step_range.max_steps,
        )
        rates = [base * factor for base in self._base_rates]
        if not all(rate <= _MAX_RATE for rate in rates):  # nor NaN
            raise NonFiniteError(f"the learning rate of step {self.step + 1} is {max(rates):g}; {_ADVICE}")
        return rates

    def _gradients(self, batch: Batch, trained: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One micro-batch's loss (detached) and its own gradients, scaled by the fp16 loss scale."""
        loss = self._family.loss(batch, self._loss_options)
        scaled = loss * self._loss_scale.scale if self._loss_scale else loss
        found = torch.autograd.grad(scaled, trained, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]
        return loss.detach(), gradients

    def _is_update_wanted(self, loss: float, grad_norm: float) -> bool:
        """False for a step that the fp16 loss scaler skips: the gradients overflowed, the loss did not."""
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss of step {self.step + 1} is {loss}; {_ADVICE}")
        finite = math.isfinite(grad_norm)
        if self._loss_scale is None:
            if not finite:
                raise NonFiniteError(f"the gradient's norm at step {self.step + 1} is {grad_norm}; {_ADVICE}")
            return True
        updated = self._loss_scale.updated(finite)
        if updated.collapsed:
            raise NonFiniteError(f"the fp16 loss scale fell below 1 at step {self.step + 1}; {_ADVICE}")
        self._loss_scale = updated
        return finite


_TAIL: Final = 3
"""Numbers behind the gradients: the loss, a signal, whether to save."""
_MAX_RATE: Final = 1e30
"""Beyond it one update may leave float32."""
_ADVICE: Final = "the state before this step is kept; try a lower learning_rate, or mixed_precision bf16 or no"


def _row(gradients: Sequence[torch.Tensor], tail: Sequence[torch.Tensor]) -> torch.Tensor:
    """All of them in a row, shape (n,), float32. The gradients are of one dtype."""
    flat = [gradient.reshape(-1) for gradient in gradients]
    if flat[0].dtype != torch.float32:
        flat = [torch.cat(flat).to(torch.float32)]  # once, not each by itself
    return torch.cat([*flat, *tail])


def _unflatten(flat: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Views of `flat` with the parameters' shapes, in their order."""
    pieces = torch.split(flat, [parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]


def train(
    trainer: Trainer,
    step_range: StepRange,
    examples: Callable[[int], Sequence[Example]],
    after_step: Callable[[StepReport], None],
    clock: Clock,
    *,
    at_hand: Callable[[int], Sequence[Example]] = lambda step: (),
) -> None:
    """Train from the trainer's step to `step_range.stop_step`. `after_step` sees a whole number of steps, always.

    Args:
        examples: those of a step, which may take encoding them.
        at_hand: those of a step that takes nothing, else none; not asked for again.
    """
    visited: Sequence[Example] = ()
    while trainer.step < step_range.stop_step:
        if not visited:
            with clock.phase("encode"):
                visited = examples(trainer.step)
        coming = at_hand(trainer.step + 1)
        with clock.phase("train"):
            report = trainer.train_step(visited, coming)
        after_step(report)
        visited = coming

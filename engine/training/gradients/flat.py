"""Gradients in one flat tensor, which every process sums and keeps; for a training of few values, such as a LoRA's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from engine.training.distributed.processes import Processes
from engine.training.methods.method import Parameters, Tensors


class FlatGradients:
    """Each process makes the whole update from the same sum; see `Gradients`."""

    def __init__(self, parameters: Parameters, processes: Processes) -> None:
        self.owned = parameters
        self._processes = processes

    @contextmanager
    def step(self, trained: Sequence[torch.Tensor], num_micro_batches: int) -> Iterator[FlatSum]:
        """See `Gradients.step`."""
        yield FlatSum(self.owned, trained, num_micro_batches, self._processes)

    def norm(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Gradients.norm`."""
        return torch.nn.utils.get_total_norm(list(gradients.values()))

    def total(self, values: Mapping[str, torch.Tensor], length: int) -> torch.Tensor:
        """See `Gradients.total`: every process has all values."""
        return torch.stack([values[name] for name in self.owned]).sum(dim=0)

    def share_parameters(self) -> None:
        """See `Gradients.share_parameters`: all processes have made the same update."""

    def sources(self, owned: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Tensors:
        """See `Gradients.sources`: every process has all tensors."""
        return dict(owned)


class FlatSum:
    """The sum of a step's gradients, with every parameter in it; see `GradientSum`."""

    def __init__(
        self, parameters: Parameters, trained: Sequence[torch.Tensor], num_micro_batches: int, processes: Processes
    ) -> None:
        self.losses = torch.empty(num_micro_batches, device=next(iter(parameters.values())).device)
        self._parameters = parameters
        self._trained = trained
        self._processes = processes
        self._total: torch.Tensor | None = None
        self._num_added = 0

    def add(self, loss: torch.Tensor, scaled: torch.Tensor) -> None:
        """See `GradientSum.add`."""
        found = torch.autograd.grad(scaled, self._trained, allow_unused=True)
        own = [torch.zeros_like(p) if g is None else g for p, g in zip(self._trained, found, strict=True)]
        # Summed in the order of the micro-batches: the bits do not depend on which process computed them.
        for row in self._processes.gather(_row(own, loss.detach())):
            gradients = row[:-1]
            self._total = gradients.clone() if self._total is None else self._total.add_(gradients)
            self.losses[self._num_added] = row[-1]
            self._num_added += 1

    def divided(self, divisor: float) -> dict[str, torch.Tensor]:
        """See `GradientSum.divided`."""
        assert self._total is not None, "a step has a micro-batch"
        if divisor != 1.0:
            self._total.div_(divisor)
        pieces = torch.split(self._total, [parameter.numel() for parameter in self._parameters.values()])
        return {
            name: piece.view(parameter.shape)
            for (name, parameter), piece in zip(self._parameters.items(), pieces, strict=True)
        }


def _row(gradients: Sequence[torch.Tensor], loss: torch.Tensor) -> torch.Tensor:
    """Return all values in one float32 tensor of shape (n,), the loss last. The gradients have one dtype."""
    flat = [gradient.reshape(-1) for gradient in gradients]
    if flat[0].dtype != torch.float32:
        flat = [torch.cat(flat).to(torch.float32)]  # one cast for all
    return torch.cat([*flat, loss.reshape(1)])

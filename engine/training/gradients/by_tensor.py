"""Gradients summed tensor by tensor as they appear; for a training of a whole model.

In one process there is never a second full gradient: each tensor's is added to the sum, and freed, while the backward
pass goes on. With several processes each sums the tensors that it owns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch

from engine.results.safetensors_file import Source
from engine.training.distributed.processes import Processes
from engine.training.gradients.shares import Shares, Slice
from engine.training.methods.method import Parameters, Tensors


class TensorGradients:
    """Each tensor's gradient is summed, and each tensor updated, by the process that owns it; see `Gradients`."""

    def __init__(self, parameters: Parameters, processes: Processes) -> None:
        assert all(parameter.is_contiguous() for parameter in parameters.values())
        self._parameters = parameters
        self._processes = processes
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self._shares = Shares(sizes, processes.world_size)
        self._owners = self._shares.owners
        self.owned: Parameters = {
            name: parameter for name, parameter in parameters.items() if self._owners[name] == processes.rank
        }

    @contextmanager
    def step(self, trained: Sequence[torch.Tensor], num_micro_batches: int) -> Iterator[TensorSum]:
        """See `Gradients.step`."""
        layers = dict(zip(self._parameters, trained, strict=True))
        found = TensorSum(self.owned, layers, num_micro_batches, self._shares, self._processes)
        hooks = [
            layer.register_post_accumulate_grad_hook(partial(found.take, name))  # type: ignore[no-untyped-call]
            for name, layer in layers.items()
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()
            for layer in trained:
                layer.grad = None

    def norm(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Gradients.norm`: the norm of the tensors' norms, in the order of the parameters, 0 where one is absent.

        So it does not depend on who owns which tensor.
        """
        zero = torch.zeros((), device=self._device)
        own = [torch.linalg.vector_norm(gradients[name]) if name in gradients else zero for name in self._parameters]
        rows = self._processes.gather(torch.stack(own))
        index = torch.tensor([list(self._owners.values())], device=self._device)
        norm: torch.Tensor = torch.linalg.vector_norm(rows.gather(0, index))
        return norm

    def total(self, values: Mapping[str, torch.Tensor], length: int) -> torch.Tensor:
        """See `Gradients.total`."""
        zeros = torch.zeros(length, dtype=torch.float64, device=self._device)
        own = torch.stack([values.get(name, zeros) for name in self._parameters])
        rows = self._processes.gather(own.view(-1)).view(-1, *own.shape)
        places = torch.arange(len(own), device=own.device)
        return rows[torch.tensor(list(self._owners.values()), device=own.device), places].sum(dim=0)

    @torch.no_grad()
    def share_parameters(self) -> None:
        """See `Gradients.share_parameters`: the owners hand their tensors round."""
        rank = self._processes.rank
        for bucket in self._shares.buckets() if self._processes.world_size > 1 else ():
            own = torch.zeros(self._shares.bucket_length, device=self._device)
            for part, values in _parts(bucket[rank], own):
                values.copy_(_values(self._parameters[part.name], part))
            for owner, row in enumerate(self._processes.gather(own)):
                for part, values in _parts(bucket[owner], row) if owner != rank else ():
                    _values(self._parameters[part.name], part).copy_(values)

    def sources(self, owned: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Tensors:
        """See `Gradients.sources`."""
        if self._processes.world_size == 1:
            return dict(owned)
        sources = {
            name: Source(
                tuple(one.shape),
                one.dtype,
                partial(
                    self._processes.bring_to_first, owned.get(name), self._owners[name], tuple(one.shape), one.dtype
                ),
            )
            for name, one in expected.items()
        }
        return cast(Tensors, sources)  # a `TrainState` that is saved may hold them

    @property
    def _device(self) -> torch.device:
        return next(iter(self._parameters.values())).device


class TensorSum:
    """The sums of the gradients of the tensors that this process owns; see `GradientSum`.

    A tensor that the losses of a step do not depend on has no gradient, and no sum.
    """

    def __init__(
        self,
        owned: Parameters,
        layers: Mapping[str, torch.Tensor],
        num_micro_batches: int,
        shares: Shares,
        processes: Processes,
    ) -> None:
        """
        Args:
            owned: the parameters that this process owns, by name.
            layers: the tensors to take gradients of, by the parameters' names.
            num_micro_batches: the number of the step's micro-batches in all processes.
            shares: all processes' parameters.
            processes: the processes that share the micro-batches.
        """
        self.losses = torch.empty(num_micro_batches, device=next(iter(layers.values())).device)
        self._owned = owned
        self._layers = layers
        self._shares = shares
        self._processes = processes
        self._sums: dict[str, torch.Tensor] = {}
        self._own: dict[str, torch.Tensor] = {}
        """The gradients of this process's current micro-batch."""
        self._num_added = 0

    def take(self, name: str, layer: torch.Tensor) -> None:
        """Take a tensor's gradient out of it, as a hook of the backward pass."""
        gradient, layer.grad = layer.grad, None
        assert gradient is not None, "the hook is called when there is one"
        if self._processes.world_size > 1:
            self._own[name] = gradient
        elif name in self._sums:
            self._sums[name].add_(gradient)
        else:
            self._sums[name] = _of_its_own(gradient)

    def add(self, loss: torch.Tensor, scaled: torch.Tensor) -> None:
        """See `GradientSum.add`."""
        torch.autograd.backward(scaled, inputs=list(self._layers.values()))
        row = loss.detach().reshape(1)
        if self._processes.world_size > 1:
            found = torch.tensor([float(name in self._own) for name in self._layers], device=loss.device)
            row = torch.cat([row, found])
        rows = self._processes.gather(row)
        stop = self._num_added + len(rows)
        self.losses[self._num_added : stop] = rows[:, 0]
        self._num_added = stop
        if self._processes.world_size > 1:
            has_gradient = rows[:, 1:].bool().tolist()
            self._exchange([{n for n, has in zip(self._layers, own, strict=True) if has} for own in has_gradient])

    @torch.no_grad()
    def _exchange(self, names: Sequence[set[str]]) -> None:
        """Add the gradients of one micro-batch of each process, in the order of the micro-batches.

        Args:
            names: the parameters of which each process has a gradient, by rank.
        """
        started = set(self._sums)
        for name in self._owned:
            if name not in started and any(name in own for own in names):
                self._sums[name] = torch.empty(self._owned[name].shape, device=self._owned[name].device)
        for bucket in self._shares.buckets():
            rows = self._dealt(bucket)
            for part, columns in _columns(bucket[self._processes.rank], rows):
                having = [rank for rank, own in enumerate(names) if part.name in own]
                for rank in having:
                    values = _values(self._sums[part.name], part)
                    is_first = part.name not in started and rank == having[0]
                    values.copy_(columns[rank]) if is_first else values.add_(columns[rank])

    def _dealt(self, bucket: Sequence[Sequence[Slice]]) -> torch.Tensor:
        """Send each owner this process's gradients of its slices. Return those of all processes of this one's, as rows.

        A gradient is freed when its last value has been sent.
        """
        lengths = [sum(part.length for part in parts) for parts in bucket]
        layer = next(iter(self._layers.values()))
        sent = torch.zeros(sum(lengths), dtype=layer.dtype, device=layer.device)
        for part, values in _parts([part for parts in bucket for part in parts], sent):
            gradient = self._own.get(part.name)
            if gradient is not None:
                values.copy_(gradient.reshape(-1)[part.start : part.stop])
                if part.stop == gradient.numel():
                    del self._own[part.name]
        return self._processes.deal(sent, lengths)

    def divided(self, divisor: float) -> dict[str, torch.Tensor]:
        """See `GradientSum.divided`."""
        if divisor != 1.0:
            for gradient in self._sums.values():
                gradient.div_(divisor)
        # Freed in this order after the step, the memory is reused with fewer gaps: it lowers the peak by some 5%.
        return {name: self._sums[name] for name in self._owned if name in self._sums}


def _of_its_own(gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient as a contiguous float32 tensor with memory of its own; the tensor itself if it is one."""
    if (
        gradient.dtype == torch.float32
        and gradient.is_contiguous()
        and gradient.untyped_storage().nbytes() == gradient.nbytes
    ):
        return gradient
    return torch.empty(gradient.shape, device=gradient.device).copy_(gradient)


def _values(tensor: torch.Tensor, part: Slice) -> torch.Tensor:
    """Return a view of a contiguous tensor's slice, of shape (part.length,)."""
    return tensor.detach().view(-1)[part.start : part.stop]


def _parts(parts: Sequence[Slice], flat: torch.Tensor) -> Iterator[tuple[Slice, torch.Tensor]]:
    """Yield each slice with its view of `flat`, shape (n,), in which they lie one after the other."""
    for part, columns in _columns(parts, flat.unsqueeze(0)):
        yield part, columns[0]


def _columns(parts: Sequence[Slice], rows: torch.Tensor) -> Iterator[tuple[Slice, torch.Tensor]]:
    """Yield each slice with its columns of `rows`, shape (W, n), in which they lie one after the other."""
    start = 0
    for part in parts:
        yield part, rows[:, start : start + part.length]
        start += part.length

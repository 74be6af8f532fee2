"""AdamW with moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861): codes of a map, and a scale for each block.

The paper's block-wise dynamic quantization in torch's own operations, so that it has the same bits wherever it is cut,
on any device. bitsandbytes' kernels are for GPUs, and torchao compiles its update on the machine that trains.
Parameters with few values, such as those of a LoRA of low rank, have moments in float32, as in both of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import torch

from engine.core.errors import CheckpointError
from engine.results.state import OptimizerState, Tensors
from engine.task.task import AdamArgs, TrainArgs
from engine.training.optimizers import adamw
from engine.training.optimizers.adamw import AdamW
from engine.training.optimizers.layout import BLOCK, MIN_8_BIT, eight_bit
from engine.training.optimizers.optimizer import Groups, Total
from engine.training.optimizers.slots import Slots, require_fit
from engine.training.optimizers.updates import batches, joined, require_float32

_DECADES: Final = 7
_CHUNK: Final = BLOCK << 14
"""Values that are updated at once: what is computed on the way takes some 100 MiB."""


def dynamic_map(*, signed: bool) -> list[float]:
    """Return the 256 values of dynamic quantization in ascending order (section 1.3 of the paper), from -1 or 0 to 1.

    From 1e-7 to 1 each decade has twice as many values as the one before: the middles of equal parts of its range.
    0 and 1 have values of their own.
    """
    found = [0.0, 1.0]
    for decade in range(_DECADES):
        count = 2 ** (decade if signed else decade + 1)
        for k in range(count):
            value = 10.0 ** (decade - _DECADES + 1) * (0.1 + 0.9 * (k + 0.5) / count)
            found += [value, -value] if signed else [value]
    return sorted(found)


class Codec:
    """Converts values to codes of 8 bits and back, with a scale for each block of `BLOCK` values: its greatest one."""

    def __init__(self, device: torch.device, *, signed: bool) -> None:
        values = dynamic_map(signed=signed)
        self._values = torch.tensor(values, device=device)
        self._borders = torch.tensor([(one + other) / 2 for one, other in pairwise(values)], device=device)
        # A positive mean square that became 0 would make the next update far too large.
        self._least = 0 if signed else 1

    def decode(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return the float32 values of uint8 codes, both of shape (n,), with the scales of their blocks."""
        return self._values[codes.int()].mul_(_spread(scales, codes.numel()))

    def encode(self, values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Write the codes of float32 values, both of shape (n,), and the scales of their blocks. Overwrites `values`.

        The code is that of the nearest value. All values of a block of zeros have the scale 0.
        """
        padded = torch.nn.functional.pad(values.abs(), (0, -values.numel() % BLOCK))
        scales.copy_(padded.view(-1, BLOCK).amax(dim=1))
        values.div_(_spread(torch.where(scales > 0.0, scales, 1.0), values.numel()))
        codes.copy_(torch.bucketize(values, self._borders, out_int32=True).clamp_(min=self._least))


def _spread(scales: torch.Tensor, count: int) -> torch.Tensor:
    """Return the scale of each of so many values."""
    return scales.unsqueeze(1).expand(-1, BLOCK).reshape(-1)[:count]


class AdamW8bit:
    """AdamW over the parameters of one training, the large ones with moments in 8 bits; see `Optimizer`."""

    def __init__(self, groups: Groups, small: AdamW, args: AdamArgs) -> None:
        """
        Args:
            groups: the parameters whose moments are in 8 bits.
            small: the optimizer of the others.
            args: the task's constants.
        """
        self._groups = groups
        self._small = small
        self._args = args
        self._parameters = joined(groups)
        self._slots = Slots(eight_bit, self._parameters)
        devices = {parameter.device for parameter in self._parameters.values()}
        self._codecs = {device: (Codec(device, signed=True), Codec(device, signed=False)) for device in devices}
        self._updates = 0

    def begin(self) -> None:
        """See `Optimizer.begin`."""
        self._small.begin()
        self._slots.begin()

    @torch.no_grad()
    def update(self, gradients: Mapping[str, torch.Tensor], rates: Sequence[float]) -> None:
        """See `Optimizer.update`."""
        require_float32(rates, 1.0 / (1.0 - self._args.beta1))
        self._slots.begin()
        self._small.update({name: one for name, one in gradients.items() if name not in self._parameters}, rates)
        self._updates += 1
        for (name,), rate in batches(self._groups, gradients, rates, is_whole_model=True):
            tensors = self._parameters[name].view(-1), gradients[name].reshape(-1)
            slots = {slot: named[name].view(-1) for slot, named in self._slots.all().items()}
            for start in range(0, tensors[0].numel(), _CHUNK):
                values, blocks = slice(start, start + _CHUNK), slice(start // BLOCK, (start + _CHUNK) // BLOCK)
                chunk = {slot: one[blocks if slot.endswith("_scale") else values] for slot, one in slots.items()}
                self._move(tensors[0][values], tensors[1][values], chunk, rate)

    def _move(self, parameter: torch.Tensor, gradient: torch.Tensor, slots: Tensors, rate: float) -> None:
        """Update some values of a parameter, of shape (n,), and write their moments. The update has the exact ones."""
        args = self._args
        first, second = self._codecs[parameter.device]
        mean = first.decode(slots["exp_avg"], slots["exp_avg_scale"])
        square = second.decode(slots["exp_avg_sq"], slots["exp_avg_sq_scale"])
        mean.lerp_(gradient, 1.0 - args.beta1)
        square.mul_(args.beta2).addcmul_(gradient, gradient, value=1.0 - args.beta2)
        root = square.sqrt().div_(math.sqrt(1.0 - args.beta2**self._updates)).add_(args.epsilon)
        parameter.mul_(1.0 - rate * args.weight_decay)
        parameter.addcdiv_(mean, root, value=-rate / (1.0 - args.beta1**self._updates))
        first.encode(mean, slots["exp_avg"], slots["exp_avg_scale"])
        second.encode(square, slots["exp_avg_sq"], slots["exp_avg_sq_scale"])

    def state(self) -> OptimizerState:
        """See `Optimizer.state`."""
        self._slots.begin()
        slots = {slot: dict(tensors) for slot, tensors in self._slots.all().items()}
        for slot, tensors in self._small.state().slots.items():
            slots.setdefault(slot, {}).update(tensors)
        return OptimizerState(slots, self._updates)

    def restore(self, state: OptimizerState) -> None:
        """See `Optimizer.restore`."""
        small = self._small.expected
        own = self._slots.expected
        require_fit(state, {slot: {**small.get(slot, {}), **own.get(slot, {})} for slot in small.keys() | own.keys()})
        self._small.restore(OptimizerState(_only(state, small), state.updates))
        self._slots.take(OptimizerState(_only(state, own), state.updates))
        for slot in ("exp_avg_scale", "exp_avg_sq_scale"):
            for name, scales in self._slots[slot].items():
                if bool((scales < 0).any()):
                    raise CheckpointError(f"the training state's {slot} of {name} is negative; use another checkpoint")
        self._updates = state.updates


def _only(state: OptimizerState, wanted: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Tensors]:
    """Return the slots of a state with the parameters that are wanted."""
    return {slot: {name: state.slots[slot][name] for name in names} for slot, names in wanted.items()}


def make(groups: Groups, args: TrainArgs, *, is_whole_model: bool, total: Total) -> AdamW8bit:
    """Make AdamW in 8 bits over parameters in groups, with `train_args.adam_args`."""
    small = [{name: one for name, one in group.items() if one.numel() < MIN_8_BIT} for group in groups]
    large = [{name: one for name, one in group.items() if one.numel() >= MIN_8_BIT} for group in groups]
    return AdamW8bit(large, adamw.make(small, args, is_whole_model=is_whole_model, total=total), args.adam_args)

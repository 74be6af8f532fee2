"""A frozen linear layer with its LoRA as one operation: y = W·x + b + s·B·(A·x), with gradients only for x, A and B.

PEFT's own layer does the same in generic steps: a cast of x to float32 and back, a product, a scaling and a sum, each
with its own node and saved tensor. Here the LoRA is added into W's product, and the backward pass keeps only x itself,
which the projections of one attention share, and the narrow A·x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners import lora as peft_lora
from torch.autograd.function import once_differentiable
from torch.nn import functional

from engine.models.quantization.layer import FrozenWeight, frozen_weight
from engine.training.methods.lora.dropout import AddressedDropout


class _LoraProduct(torch.autograd.Function):
    """Computes in the frozen weight's dtype: x, A and B are cast to it if they differ, and their gradients back."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd calls it by position
        ctx: Any,
        x: torch.Tensor,
        frozen: FrozenWeight,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Map x (…, in), weight (out, in), bias (out,), A (rank, in), B (out, rank) to (…, out) in weight's dtype."""
        weight, dtype = frozen.read(*frozen.tensors), frozen.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        ctx.adapter_dtype = down.dtype
        down, up = down.to(dtype), up.to(dtype)
        hidden = rows @ down.t()
        result = functional.linear(rows, weight, bias).addmm_(hidden, up.t(), alpha=scale)
        # x is saved uncast: the projections that share it then share its memory.
        ctx.save_for_backward(x, down, up, hidden, *frozen.tensors)
        ctx.read, ctx.scale = frozen.read, scale
        return result.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, down, up, hidden, *stored = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        inner = gradient @ up
        of_up = gradient.t() @ hidden
        if ctx.scale != 1.0:
            inner.mul_(ctx.scale)
            of_up.mul_(ctx.scale)
        of_down = inner.t() @ x.reshape(-1, x.shape[-1]).to(gradient.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ ctx.read(*stored)).addmm_(inner, down).view(x.shape).to(x.dtype)
        return of_x, None, None, of_down.to(ctx.adapter_dtype), of_up.to(ctx.adapter_dtype), None


@dataclass(slots=True)
class Taken:
    """A switch that tells the layers of one adapter to compute with copies of their A and B, which are up to date."""

    now: bool = False


class LoraLinear(peft_lora.Linear):  # type: ignore[misc]
    """PEFT's linear layer with one active adapter, as one operation. Disabled or with dropout, it is PEFT's own."""

    copies: tuple[Taken, torch.Tensor, torch.Tensor] | None = None
    """The switch, and copies of A and B in the dtype of the computation; see `low_precision.WorkingCopy`."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map x (…, in) of any floating dtype to (…, out) in autocast's dtype; without autocast, the base weight's."""
        (adapter,) = self.active_adapters
        dropout = self.lora_dropout[adapter]
        if self.disable_adapters or (isinstance(dropout, AddressedDropout) and dropout.is_dropping):
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        base = self.get_base_layer()
        frozen = frozen_weight(base)
        bias = base.bias if base.bias is None else base.bias.to(frozen.dtype)
        if self.copies is not None and self.copies[0].now:
            _, down, up = self.copies
            assert down.dtype == frozen.dtype, "a copy in another dtype would change the bits"
        else:
            down, up = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        product: torch.Tensor = _LoraProduct.apply(x, frozen, bias, down, up, self.scaling[adapter])  # type: ignore[no-untyped-call]
        return product

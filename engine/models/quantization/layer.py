"""Linear layers with quantised frozen weights, which are dequantised whenever they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from engine.core.errors import ModelError
from engine.models.quantization.formats import FORMATS
from engine.models.quantization.rule import is_in_a_block
from engine.task.task import Quantization

Read = Callable[..., torch.Tensor]
"""Returns a layer's frozen weight of shape (out, in) in the dtype of the computation, from what stores it."""


@dataclass(frozen=True, slots=True)
class FrozenWeight:
    """A layer's frozen weight as it is kept."""

    tensors: tuple[torch.Tensor, ...]
    """The tensors that store it. The backward pass gets them from autograd, since they may be freed until gradient
    checkpointing computes the layer again."""
    read: Read
    dtype: torch.dtype
    """The dtype of the computation, which `read` returns."""


class _FrozenProduct(torch.autograd.Function):
    """A linear layer whose backward pass reads the weight again: between the passes it is kept in no other form."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: FrozenWeight, bias: torch.Tensor | None) -> torch.Tensor:
        """Map x (…, in) and bias (out,), both in the weight's dtype, to (…, out)."""
        ctx.save_for_backward(*weight.tensors)
        ctx.read = weight.read
        return functional.linear(x, weight.read(*weight.tensors), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient @ ctx.read(*ctx.saved_tensors), None, None


class QuantisedLinear(torch.nn.Linear):
    """A frozen linear layer whose weight is kept as codes with scales. Its bias is kept as it is."""

    qweight: torch.Tensor
    """The codes; by this name PEFT finds the device without having the weight dequantised."""
    scales: torch.Tensor
    dtype: torch.dtype
    """The dtype of its computation without autocast."""

    def __init__(
        self, linear: torch.nn.Linear, quantization: Quantization, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """
        Args:
            linear: the layer to replace, in any floating dtype.
            quantization: the format of its weight.
            device: the device on which it is quantised and kept.
            dtype: the dtype of its bias, and of its computation without autocast.

        Raises:
            ModelError: its weight is not finite.
        """
        torch.nn.Module.__init__(self)  # torch.nn.Linear's own would make a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._format, self.dtype = FORMATS[quantization], dtype
        codes, scales = self._format.quantise(linear.weight.detach().to(device, torch.float32))
        if not bool(torch.isfinite(scales).all()):
            raise ModelError("a weight is not finite")
        self.register_buffer("qweight", codes)
        self.register_buffer("scales", scales)
        bias = None if linear.bias is None else linear.bias.detach().to(device, dtype, copy=True)
        self.register_parameter("bias", bias if bias is None else torch.nn.Parameter(bias, requires_grad=False))

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The dequantised weight, made anew each time: codes times scales in float32, rounded to `dtype`."""
        return self.dequantise(self.dtype, self.qweight, self.scales)

    def dequantise(self, dtype: torch.dtype, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return the weight of shape (out, in) in `dtype` from this layer's codes and scales, wherever they are."""
        return self._format.dequantise(codes, scales, (self.out_features, self.in_features)).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (…, in) of any floating dtype to (…, out) in autocast's dtype; without autocast, the layer's."""
        weight = frozen_weight(self)
        bias = self.bias if self.bias is None else self.bias.to(weight.dtype)
        product: torch.Tensor = _FrozenProduct.apply(x.to(weight.dtype), weight, bias)  # type: ignore[no-untyped-call]
        return product


def frozen_weight(linear: torch.nn.Linear) -> FrozenWeight:
    """Return a layer's weight for a computation in autocast's dtype, or without autocast in the layer's own."""
    if isinstance(linear, QuantisedLinear):
        dtype = _computed_dtype(linear.qweight.device, linear.dtype)
        return FrozenWeight((linear.qweight, linear.scales), partial(linear.dequantise, dtype), dtype)
    weight = linear.weight.to(_computed_dtype(linear.weight.device, linear.weight.dtype))
    return FrozenWeight((weight,), _itself, weight.dtype)


def _itself(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _computed_dtype(device: torch.device, own: torch.dtype) -> torch.dtype:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else own


def quantise(
    denoiser: torch.nn.Module,
    quantization: Quantization,
    *,
    device: torch.device,
    dtype: torch.dtype,
    kept_on: torch.device,
) -> None:
    """Replace the linear layers in a denoiser's blocks by quantised ones, one after the other, and move it.

    Layers that are replaced are freed, so that memory never holds the denoiser twice.

    Args:
        denoiser: a frozen module of Diffusers on the CPU, in the dtypes of its files.
        quantization: the format.
        device: where it is quantised.
        dtype: the dtype of the computation, and of the weights that are not quantised.
        kept_on: where the module is moved to.

    Raises:
        ModelError: a weight is not finite.
    """
    names = {
        name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear) and is_in_a_block(name)
    }
    for name in sorted(names):
        parent, _, last = name.rpartition(".")
        layers = denoiser.get_submodule(parent)
        layer = _quantised(name, getattr(layers, last), quantization, device, dtype)
        setattr(layers, last, layer.to(kept_on))
    kept = set(getattr(denoiser, "_keep_in_fp32_modules", None) or ())
    for name, tensor in denoiser.state_dict(keep_vars=True).items():
        is_kept = name.rpartition(".")[0] in names or not kept.isdisjoint(name.split("."))
        if tensor.is_floating_point() and not is_kept:
            tensor.data = tensor.data.to(kept_on, dtype)
    denoiser.to(kept_on)


def _quantised(
    name: str, linear: torch.nn.Linear, quantization: Quantization, device: torch.device, dtype: torch.dtype
) -> QuantisedLinear:
    try:
        return QuantisedLinear(linear, quantization, device=device, dtype=dtype)
    except ModelError as error:
        raise ModelError(f"the base model's {name}: {error}; use another base model") from None

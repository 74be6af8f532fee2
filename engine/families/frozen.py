"""Large frozen layers on a CPU as plain products of oneDNN's, forward and for the gradient of their input.

What torch does instead: float32 products of matrices by MKL, which on processors of other makers than its own takes
older instructions, and convolutions by oneDNN, which rearranges the whole weight in each call: with many channels and
few pixels that takes longer than the convolution. As a product of patches (Chellapilla et al. 2006, "High performance
convolutional neural networks for document processing", section 3) it takes the weight as it lies in memory.

Which way a layer goes follows from its weight and the shape of its input alone, so it is the same on every machine.
"""

from __future__ import annotations

import math
import platform
from typing import Any, Final

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

LARGE: Final = 1 << 16
"""Numbers in a weight from which a product outweighs the calls of Python around it."""

_SUM: Final = torch.float32
"""What a gradient's patches are added up in."""
_IS_HERE: Final = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")  # type: ignore[no-untyped-call]


def use_products(module: torch.nn.Module) -> None:
    """Let a frozen module's large linear layers and convolutions compute by products where they are on a CPU.

    Convolutions' weights are brought into the order of memory that the product wants (`torch.channels_last`).
    """
    for layer in module.modules() if _IS_HERE else ():
        if type(layer) is torch.nn.Linear and layer.weight.numel() >= LARGE:
            layer.__class__ = FrozenLinear
        elif type(layer) is torch.nn.Conv2d and layer.weight.numel() >= LARGE and _is_plain(layer):
            layer.__class__ = FrozenConv2d
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def _is_plain(layer: torch.nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.padding_mode == "zeros" and layer.dilation == (1, 1)


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """rows (n, in), weight (out, in), bias (out,), all of one dtype -> (n, out). No gradients."""
    if _IS_HERE and weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() >= LARGE:
        return _product(rows, weight, bias)
    return functional.linear(rows, weight, bias)


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


class FrozenLinear(torch.nn.Linear):
    """torch's, with gradients for its input alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…, in) -> (…, out)."""
        # Of 16-bit products torch lets oneDNN take care by itself.
        if not _is_own(x, self.weight) or self.weight.dtype != torch.float32:
            return super().forward(x)
        found: torch.Tensor = _FrozenProduct.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        of_rows = _product(gradient.reshape(-1, gradient.shape[-1]), weight.t(), None)
        return of_rows.view(*gradient.shape[:-1], -1), None, None


class FrozenConv2d(torch.nn.Conv2d):
    """torch's, with gradients for its input alone; of one group, padded with zeros, without dilation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, in, H, W) -> (B, out, H', W'), in the order of memory of `torch.channels_last`."""
        if not _is_own(x, self.weight) or isinstance(self.padding, str) or not self._is_few(x):
            return super().forward(x)
        x = x.to(self.weight.dtype)  # as autocast would
        found: torch.Tensor = _FrozenPatches.apply(x, self.weight, self.bias, self.stride, self.padding)  # type: ignore[no-untyped-call]
        return found

    def _is_few(self, x: torch.Tensor) -> bool:
        """Whether writing patches down costs less than rearranging the weight; of single pixels there are none."""
        if self.kernel_size == (1, 1):
            return True
        places = x.shape[0] * math.ceil(x.shape[2] / self.stride[0]) * math.ceil(x.shape[3] / self.stride[1])
        return 2 * places <= self.out_channels


def _is_own(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if x.device.type != "cpu" or weight.device.type != "cpu" or weight.requires_grad:
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == weight.dtype


class _FrozenPatches(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd calls it by position
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        patches = _patches(x, weight.shape[2:], stride, padding)
        y = _product(patches.reshape(-1, weight[0].numel()), _rows(weight), bias)
        return y.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        size, channels, height, width = gradient.shape
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, channels)
        patches = _product(rows, _rows(weight).t(), None)
        shaped = patches.view(size, height, width, *weight.shape[2:], weight.shape[1])
        return _summed(shaped, ctx.shape, ctx.stride, ctx.padding), None, None, None, None


def _rows(weight: torch.Tensor) -> torch.Tensor:
    """(out, in, h, w) as (out, h x w x in): in channels_last a view."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _patches(
    x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    """(B, in, H, W) as a view (B, H', W', h, w, in): of each place of the result what the kernel sees."""
    (size, channels, height, width), (above, left) = x.shape, padding
    pixels = x.permute(0, 2, 3, 1).contiguous()
    if padding != (0, 0):
        padded = x.new_zeros(size, height + 2 * above, width + 2 * left, channels)
        padded[:, above : above + height, left : left + width] = pixels
        pixels = padded
    return pixels.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1]).permute(0, 1, 2, 4, 5, 3)


def _summed(
    patches: torch.Tensor, shape: tuple[int, int, int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    """The adjoint of `_patches`: every patch added where it was taken, in the order of the kernel."""
    (size, channels, height, width), (above, left) = shape, padding
    _, rows, columns, *kernel, _ = patches.shape
    if kernel == [1, 1] and stride == (1, 1) and padding == (0, 0):
        return patches.view(size, height, width, channels).permute(0, 3, 1, 2)
    total = patches.new_zeros(size, height + 2 * above, width + 2 * left, channels, dtype=_SUM)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            seen = total[:, i : i + rows * stride[0] : stride[0], j : j + columns * stride[1] : stride[1]]
            seen += patches[:, :, :, i, j]
    inner = total[:, above : above + height, left : left + width]
    return inner.to(patches.dtype, copy=True).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

"""What torch holds while a transformer or a text encoder of any size computes: run on tensors without memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional

from engine.models.components import block_inputs
from engine.models.components.block_inputs import BlockInputs
from engine.models.families.sd.spec import SPEC
from engine.task.task import Lora
from engine.training.gradient_checkpointing import recompute_activations
from engine.training.methods.lora.adapter import attach
from tests.support.fake_memory import LiveBytes, cuda_autocast, faked

SPECIFIED = replace(SPEC, denoiser="transformer", text_encoders=())
"""A row for adapters on transformers, whose targets are always given."""


class _FusedRmsNorm(torch.autograd.Function):
    """`aten::_fused_rms_norm` as on CUDA, where it is one kernel that keeps its input, the weight and a number for each
    row. On a CPU torch composes it of operations that keep more.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x[..., :1].clone())
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(x: torch.Tensor, shape: Any, weight: torch.Tensor, eps: float | None = None) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):
        x, weight = x.float(), weight.float()
    return _FusedRmsNorm.apply(x, weight)


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Let autocast and norms on a CPU keep what they keep on CUDA."""
    with cuda_autocast(), mock.patch.object(functional, "rms_norm", _rms_norm):
        yield


class _Uncounted:
    """Main memory without memory."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size

    def copy_from(self, source: torch.Tensor) -> None:
        assert source.shape == (self.size,)

    copy_to = copy_from


def training_bytes(
    cls: type,
    config: Mapping[str, Any],
    inputs: Any,
    *,
    dtype: torch.dtype,
    recompute: bool,
    targets: tuple[str, ...] | str | None,
    rank: int = 16,
    offloads_inputs: bool = False,
) -> tuple[int, int]:
    """The peak of a micro-batch's forward and backward pass on a GPU, and the number of trained values.

    Args:
        cls: the transformer's class.
        config: its configuration.
        inputs: a function that makes its arguments from a dtype.
        dtype: of the frozen weights and of autocast.
        recompute: whether it trains with gradient checkpointing.
        targets: the layers with an adapter of this rank, whose gradients are not counted; None trains all weights, and
            their gradients are counted as they appear, in float32.
        rank: of the adapter.
        offloads_inputs: whether the inputs of its blocks are in main memory meanwhile, which is not counted.
    """
    with torch.device("meta"):
        denoiser = cls(**config)
    nn.Module.to(denoiser.eval(), dtype)
    if targets is not None:
        attach({SPECIFIED.denoiser: denoiser}, Lora(rank=rank, target_modules=targets), 0, spec=SPECIFIED)
    if recompute:
        recompute_activations(denoiser, BlockInputs(torch.device("cpu")) if offloads_inputs else None)
    mode, sums = faked(denoiser), list[torch.Tensor]()
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]

    def take(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        if targets is None:
            sums.append(gradient.float())

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(take)
    uncounted = mock.patch.object(block_inputs, "MainMemory", _Uncounted)
    with mode, as_on_cuda(), uncounted:
        _fake_buffers(denoiser)
        arguments = inputs(dtype)
        with LiveBytes([*denoiser.parameters(), *denoiser.buffers()]) as live:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                found = denoiser(**arguments, return_dict=False)[0]
            found = found[0] if isinstance(found, list) else found
            found.float().square().mean().backward()
    return live.peak, sum(parameter.numel() for parameter in trained)


def _fake_buffers(root: nn.Module) -> None:
    """Put fake tensors in the place of a module's buffers and of other tensors that it holds."""
    for module in root.modules():
        for place in (module._buffers, vars(module)):
            place |= {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                for name, tensor in place.items()
                if isinstance(tensor, torch.Tensor)
            }


def encoding_bytes(make: Callable[[], Any], call: Callable[[Any], Any], dtype: torch.dtype) -> tuple[int, int]:
    """The peak of a call without gradients, besides the weights of the module; and the number of its parameters."""
    with torch.device("meta"):
        module = make()
    nn.Module.to(module.eval(), dtype)
    parameters = sum(parameter.numel() for parameter in module.parameters())  # shared ones count once, until faked
    with faked(module), torch.no_grad():
        _fake_buffers(module)
        with LiveBytes([*module.parameters(), *module.buffers()]) as live:
            call(module)
    return live.peak, parameters

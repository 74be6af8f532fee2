"""What torch holds while a denoiser of any size trains: run for real on tensors without memory (FakeTensorMode)."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.models.families.sd.spec import SPEC
from engine.task.task import Lora
from engine.training.gradient_checkpointing import recompute_activations
from engine.training.methods.lora.adapter import Adapter, attach
from engine.training.methods.lora.dropout import AddressedDropout

UPCAST = ("group_norm", "layer_norm", "interpolate")
"""What autocast computes in float32 on CUDA and not on a CPU, of all that the denoisers call."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@contextlib.contextmanager
def cuda_autocast() -> Iterator[None]:
    """Let autocast on a CPU compute norms in float32, as it does on CUDA."""
    plain = {name: getattr(functional, name) for name in UPCAST}

    def upcast(function):
        def call(*args, **kwargs):
            if torch.is_autocast_enabled("cpu"):
                args = [arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args]
                kwargs = {name: arg.float() if isinstance(arg, torch.Tensor) else arg for name, arg in kwargs.items()}
            return function(*args, **kwargs)

        return call

    for name, function in plain.items():
        setattr(functional, name, upcast(function))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(functional, name, function)


def fake_adapted(
    cls: type, config: Mapping[str, Any], dtype: torch.dtype, options: Lora
) -> tuple[nn.Module, Adapter, FakeTensorMode]:
    """A denoiser with an adapter, its tensors fake, on the CPU; and the mode that they live in."""
    with torch.device("meta"):
        denoiser = cls(**{key: value for key, value in config.items() if not key.startswith("_")})
    nn.Module.to(denoiser.eval(), dtype)
    adapter = attach({SPEC.denoiser: denoiser}, options, 0, spec=SPEC)
    return denoiser, adapter, _faked(denoiser)


def _faked(root: nn.Module) -> FakeTensorMode:
    """Put fake tensors in the place of a module's own."""
    with FakeTensorMode() as mode:
        for module in root.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    return mode


def _drop(_: AddressedDropout, x: torch.Tensor) -> torch.Tensor:
    """As `AddressedDropout`, with a mask that is not drawn."""
    return torch.where(torch.empty(x.shape, dtype=torch.bool), x, 0.0) * 1.5


def training_bytes(
    cls: type,
    config: Mapping[str, Any],
    *,
    side: int,
    batch: int,
    dtype: torch.dtype,
    recompute: bool,
    options: Lora,
    is_cuda: bool = True,
) -> int:
    """The peak of a micro-batch's forward and backward pass, without the model's and the adapter's own weights."""
    denoiser, adapter, mode = fake_adapted(cls, config, dtype, options)
    if recompute:
        recompute_activations(denoiser)
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    with mode, cuda_autocast() if is_cuda else contextlib.nullcontext():
        latents, timesteps = torch.empty(batch, 4, side, side), torch.zeros(batch, dtype=torch.int64)
        conditioning: dict[str, Any] = {
            "encoder_hidden_states": torch.empty(batch, 77, config["cross_attention_dim"], dtype=dtype)
        }
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            added = {"text_embeds": torch.empty(batch, pooled, dtype=dtype), "time_ids": torch.empty(batch, 6)}
            conditioning["added_cond_kwargs"] = added
        dropping = mock.patch.object(AddressedDropout, "forward", _drop)
        with dropping, adapter.dropping.at(0), LiveBytes([*denoiser.parameters(), *denoiser.buffers()]) as live:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                prediction = denoiser(latents.to(dtype), timesteps, **conditioning).sample
            torch.autograd.grad((prediction.float() - latents).square().mean(), trained)
    return live.peak


def autoencoding_bytes(
    cls: type, config: Mapping[str, Any], *, side: int, dtype: torch.dtype, decode: bool, batch: int = 1
) -> int:
    """The peak of encoding or decoding an image without gradients, besides the weights."""
    with torch.device("meta"):
        vae = cls(**{key: value for key, value in config.items() if not key.startswith("_")})
    nn.Module.to(vae.eval(), dtype)
    with _faked(vae), LiveBytes([*vae.parameters()]) as live, torch.no_grad():
        if decode:
            vae.decode(torch.empty(batch, config["latent_channels"], side // 8, side // 8, dtype=dtype))
        else:
            vae.encode(torch.empty(batch, 3, side, side, dtype=dtype))
    return live.peak

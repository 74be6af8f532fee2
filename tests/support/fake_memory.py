"""What torch holds while a denoiser of any size trains: run for real on tensors without memory (FakeTensorMode)."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from engine.models.families.sd.spec import SPEC
from engine.task.task import Lora
from engine.training.gradient_checkpointing import recompute_activations
from engine.training.methods.lokr import method as lokr
from engine.training.methods.lokr.method import LokrTraining
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
        denoiser = cls(**without_class(config))
    nn.Module.to(denoiser.eval(), dtype)
    adapter = attach({SPEC.denoiser: denoiser}, options, 0, spec=SPEC)
    return denoiser, adapter, faked(denoiser)


def fake_with_lokr(
    cls: type, config: Mapping[str, Any], dtype: torch.dtype, options: Lora
) -> tuple[nn.Module, LokrTraining, FakeTensorMode]:
    """The same with a LoKr."""
    with torch.device("meta"):
        denoiser = cls(**without_class(config))
    nn.Module.to(denoiser.eval(), dtype)
    family, task = SimpleNamespace(spec=SPEC, parts={SPEC.denoiser: denoiser}), SimpleNamespace(lora=options, seed=0)
    training = lokr.attach(family, task, torch.device("meta"), start=None, warm_start=None)
    mode = faked(denoiser)
    with mode:
        training.parameters = {name: nn.Parameter(torch.empty(one.shape)) for name, one in training.parameters.items()}
    return denoiser, training, mode


def without_class(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def faked(root: nn.Module) -> FakeTensorMode:
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


def _inputs(config: Mapping[str, Any], side: int, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a denoiser."""
    found = {
        "sample": torch.empty(batch, 4, side, side).to(dtype),
        "timestep": torch.zeros(batch, dtype=torch.int64),
        "encoder_hidden_states": torch.empty(batch, 77, config["cross_attention_dim"], dtype=dtype),
    }
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": torch.empty(batch, pooled, dtype=dtype), "time_ids": torch.empty(batch, 6)}
        found["added_cond_kwargs"] = added
    return found


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
    adapt: Callable[..., tuple[nn.Module, Any, FakeTensorMode]] = fake_adapted,
) -> int:
    """The peak of a micro-batch's forward and backward pass, without the model's and the adapter's own weights."""
    denoiser, adapter, mode = adapt(cls, config, dtype, options)
    if recompute:
        recompute_activations(denoiser)
    # Where parameters are the layers' own, the fake ones have taken the places of those that the adapter knows.
    own = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    trained = own or [*adapter.parameters.values()]
    with mode, cuda_autocast() if is_cuda else contextlib.nullcontext():
        inputs = _inputs(config, side, batch, dtype)
        dropping = mock.patch.object(AddressedDropout, "forward", _drop)
        with (
            dropping,
            adapter.dropping.at(0),
            LiveBytes([*denoiser.parameters(), *denoiser.buffers(), *trained]) as live,
        ):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                prediction = denoiser(**inputs).sample
            torch.autograd.grad((prediction.float() - inputs["sample"]).square().mean(), trained)
    return live.peak


class _Whole(nn.Module):
    """A denoiser and, if they are trained, its text encoders: what a whole-model training computes."""

    def __init__(self, configs: Mapping[str, Any], texts: Sequence[str]) -> None:
        super().__init__()
        self.denoiser = UNet2DConditionModel(**without_class(configs["unet"]))
        self.texts = nn.ModuleList()
        for name in texts:
            pooled = configs[name]["architectures"] == ["CLIPTextModelWithProjection"]
            cls = CLIPTextModelWithProjection if pooled else CLIPTextModel
            self.texts.append(cls(CLIPTextConfig(**configs[name])))

    def forward(self, tokens: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        if len(self.texts) == 1:
            inputs["encoder_hidden_states"] = self.texts[0](tokens).last_hidden_state
        elif self.texts:
            found = [text(tokens, output_hidden_states=True) for text in self.texts]
            inputs["encoder_hidden_states"] = torch.cat([one.hidden_states[-2] for one in found], dim=-1)
            inputs["added_cond_kwargs"]["text_embeds"] = found[-1].text_embeds
        return self.denoiser(**inputs).sample


def whole_training_bytes(
    configs: Mapping[str, Any],
    *,
    side: int,
    batch: int,
    dtype: torch.dtype,
    recompute: bool,
    micro_batches: int = 1,
    texts: Sequence[str] = (),
    is_cuda: bool = True,
) -> int:
    """The peak of a step in which all weights of a UNet and of these text encoders are trained, without the weights
    and the optimizer's state. Gradients are summed in float32 as they appear.
    """
    with torch.device("meta"):
        whole = _Whole(configs, texts)
    if recompute:
        recompute_activations(whole.denoiser)
    nn.Module.to(whole.eval(), dtype)
    mode, sums = faked(whole), dict[nn.Parameter, torch.Tensor]()

    def take(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        if parameter in sums:
            sums[parameter].add_(gradient)
        else:
            sums[parameter] = gradient.float()

    for parameter in whole.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    with mode, cuda_autocast() if is_cuda else contextlib.nullcontext():
        for text in whole.texts:  # not the meta tensor that it was built with
            embeddings = next(module for module in text.modules() if hasattr(module, "position_ids"))
            embeddings.position_ids = torch.zeros(1, 77, dtype=torch.int64)
        with LiveBytes([*whole.parameters(), *whole.buffers()]) as live:
            for _ in range(micro_batches):
                tokens, inputs = torch.zeros(batch, 77, dtype=torch.int64), _inputs(configs["unet"], side, batch, dtype)
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    found = whole(tokens, inputs)
                found.float().square().mean().backward()
                del found, inputs
    return live.peak


def autoencoding_bytes(
    cls: type, config: Mapping[str, Any], *, side: int, dtype: torch.dtype, decode: bool, batch: int = 1
) -> int:
    """The peak of encoding or decoding an image without gradients, besides the weights."""
    with torch.device("meta"):
        vae = cls(**without_class(config))
    nn.Module.to(vae.eval(), dtype)
    with faked(vae), LiveBytes([*vae.parameters()]) as live, torch.no_grad():
        if decode:
            vae.decode(torch.empty(batch, config["latent_channels"], side // 8, side // 8, dtype=dtype))
        else:
            vae.encode(torch.empty(batch, 3, side, side, dtype=dtype))
    return live.peak

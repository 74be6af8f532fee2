"""The LoRA adapter (Hu et al. 2021, arXiv:2106.09685): attached by PEFT, with addressed random start values.

Tensors have the names of Diffusers' LoRA files: `<component>.<module>.lora_A.weight` and `lora_B.weight`, where
`<component>` is the denoiser or a text encoder, and `<module>` the name of the adapted layer in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from engine.core import rng
from engine.core.errors import CheckpointError
from engine.models.family import Tensors
from engine.models.spec import FamilySpec
from engine.task.task import Lora
from engine.training.methods.lora import loftq
from engine.training.methods.lora.dropout import AddressedDropout, Dropping
from engine.training.methods.lora.formats.names import UP, require_fit, require_room, tensor_names
from engine.training.methods.lora.linear import LoraLinear
from engine.training.methods.lora.targets import NO_QUANTISED_START, find_targets, require_decomposable

_ADAPTER: Final = "default"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An attached LoRA adapter."""

    parameters: dict[str, torch.nn.Parameter]
    """All trained parameters, float32, sorted by name."""
    initial: Tensors
    """LoftQ's start values by the same names (float32, CPU), which the export subtracts; empty for other starts."""
    strength: float = 1.0
    """The factor of every product B·A; see `strength_of`."""
    dropping: Dropping = field(default_factory=Dropping)
    """The switch of the adapter's dropout, which is on only during a micro-batch."""
    fused: Mapping[str, LoraLinear] = field(default_factory=dict)
    """The layers that compute their LoRA in one operation in every micro-batch, by full name."""

    def state(self) -> Tensors:
        """Return the trained tensors, float32, on their device. They share memory with the parameters."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the adapter with `tensors`: another `state`, or a LoRA file read by `from_diffusers_file`.

        Raises:
            CheckpointError: names or shapes differ; it names the first.
        """
        require_fit(tensors, self.parameters)
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def warm_start(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Start from another training's LoRA, which applies to the unchanged base model at strength 1.

        A layer of a lower rank keeps its effect: the added rows of A have this adapter's start values, so that they can
        be trained, and the added columns of B are zero.

        Raises:
            CheckpointError: it does not fit, or this adapter's base model is quantised.
        """
        if self.initial:
            raise CheckpointError(NO_QUANTISED_START)
        require_room(tensors, self.parameters)
        widened = {name: _widened(name, tensor, self.parameters[name]) for name, tensor in tensors.items()}
        self.restore(_with_up_divided(widened, self.strength))


def strength_of(lora: Lora) -> float:
    """Return alpha / rank (Hu et al. 2021, section 4.1), or alpha / √rank (Kalajdzievski 2023, arXiv:2312.03732)."""
    alpha = lora.rank if lora.alpha is None else lora.alpha
    return alpha / (math.sqrt(lora.rank) if lora.use_rslora else lora.rank)


def attach(
    components: Mapping[str, torch.nn.Module],
    lora: Lora,
    seed: int,
    *,
    spec: FamilySpec,
    initial: Mapping[str, torch.Tensor] | None = None,
) -> Adapter:
    """Freeze the components and inject a trainable adapter, whose start values depend only on the seed and on names.

    With `init_lora_weights: "loftq"` the weights of the denoiser's target linear layers are replaced by their quantised
    values.

    Args:
        components: the denoiser and the trained text encoders, by their names in Diffusers' LoRA files; in memory, on
            their device, without an adapter; changed in place.
        lora: rank, targets and kind of initialisation.
        seed: the task's seed.
        spec: the base model's family.
        initial: `Adapter.initial` of the training that is continued: LoftQ then quantises the base again, but does not
            decompose it again. None for a new training.

    Raises:
        TaskError: the targets match no layer, or a layer that cannot be adapted.
        CheckpointError: `initial` does not fit.
    """
    targets = {
        component: find_targets(root, spec.targets_of(component, lora.target_modules))
        for component, root in components.items()
    }
    # LoftQ applies to matrices: convolutions among the targets keep their weights and get ordinary start values, and so
    # do the text encoders.
    quantised = _linears(targets[spec.denoiser], spec) if lora.init_lora_weights == "loftq" else {}
    require_decomposable({name: tuple(layer.weight.shape) for name, layer in quantised.items()}, lora.rank)
    layers: dict[str, Any] = {}
    for component, root in components.items():
        root.requires_grad_(False)
        _inject(root, targets[component], lora)
        layers |= {spec.lora_name(component, module): root.get_submodule(module) for module in targets[component]}
    dropping = _replace_dropout(layers, lora.dropout, seed)
    parameters = _parameters(layers)
    strength = strength_of(lora)
    if initial is None:
        starts = _with_up_divided(tensors_by_name(loftq.replace_weights(quantised, lora.rank)), strength)
    else:
        require_fit(initial, {name: parameters[name] for module in quantised for name in tensor_names(module)})
        starts = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in initial.items()}
        loftq.requantise_weights(quantised)
    for name, parameter in parameters.items():
        value = starts[name] if name in starts else _draw(name, tuple(parameter.shape), lora, seed)
        parameter.data = value.to(parameter.device, torch.float32, copy=True)
        parameter.requires_grad_(True)
    # With dropout, PEFT's own implementation computes with the parameters themselves.
    fused = {} if lora.dropout else {name: layer for name, layer in layers.items() if isinstance(layer, LoraLinear)}
    return Adapter(parameters, starts, strength, dropping, fused)


@contextmanager
def disabled(components: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Switch the components' adapters off in the block; with LoftQ the denoiser's weights stay quantised."""
    layers = [module for root in components for module in root.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def tensors_by_name(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Tensors:
    """Return each module's (down, up) pair as tensors by name."""
    return {
        name: tensor for module, pair in pairs.items() for name, tensor in zip(tensor_names(module), pair, strict=True)
    }


def _widened(name: str, tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return a matrix with the rank of the adapter's; see `Adapter.warm_start`."""
    axis = 1 if name.endswith(UP) else 0
    rank = tensor.shape[axis]
    rest = parameter.detach().narrow(axis, rank, parameter.shape[axis] - rank).to(tensor.device)
    return torch.cat([tensor, torch.zeros_like(rest) if axis else rest], dim=axis)


def _with_up_divided(tensors: Mapping[str, torch.Tensor], strength: float) -> Tensors:
    """Convert an adapter for strength 1 to one for `strength` with the same effect on the weights."""
    return {name: tensor / strength if name.endswith(UP) else tensor for name, tensor in tensors.items()}


def _linears(layers: Mapping[str, torch.nn.Module], spec: FamilySpec) -> dict[str, torch.nn.Linear]:
    """Return the linear layers among the denoiser's layers, by full name."""
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, torch.nn.Linear)}
    return {spec.lora_name(spec.denoiser, name): layer for name, layer in linear.items()}


def _replace_dropout(layers: Mapping[str, Any], probability: float, seed: int) -> Dropping:
    """Replace PEFT's dropout by addressed dropout, if there is any."""
    dropping = Dropping()
    for name, layer in layers.items() if probability else ():
        layer.lora_dropout[_ADAPTER] = AddressedDropout(probability, seed=seed, layer=name, dropping=dropping)
    return dropping


def _parameters(layers: Mapping[str, Any]) -> dict[str, torch.nn.Parameter]:
    found: dict[str, torch.nn.Parameter] = {}
    for module, layer in layers.items():
        down, up = tensor_names(module)
        found |= {down: layer.lora_A[_ADAPTER].weight, up: layer.lora_B[_ADAPTER].weight}
    return dict(sorted(found.items()))


def _inject(root: torch.nn.Module, layers: Iterable[str], lora: Lora) -> None:
    config = LoraConfig(
        r=lora.rank,
        # PEFT's default is 8 for any rank; an alpha equal to the rank makes the adapter's scale 1.
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
        use_rslora=lora.use_rslora,
        # An expression of exact names: PEFT would also match a list of names by their ends.
        target_modules="|".join(map(re.escape, layers)),
        init_lora_weights=True,
    )
    config._register_custom_module({torch.nn.Linear: LoraLinear})
    # PEFT draws start values from torch's global generator; all of them are overwritten.
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, root, adapter_name=_ADAPTER)


def _draw(name: str, shape: tuple[int, ...], lora: Lora, seed: int) -> torch.Tensor:
    """Return start values by the same rule as PEFT's initialisation, from the parameter's own random stream."""
    is_up = name.endswith(UP)
    if is_up and lora.init_lora_weights is not False:
        return torch.zeros(shape)
    stream = f"lora init/{name}"
    if lora.init_lora_weights == "gaussian":
        return torch.from_numpy(rng.normal(seed, stream, 0, shape)) / lora.rank
    # He et al. 2015 (arXiv:1502.01852) with a = √5, torch's own choice for linear and convolution layers.
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (torch.from_numpy(rng.uniform(seed, stream, 0, shape)) * 2 - 1) * bound

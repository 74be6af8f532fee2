"""The LoRA adapter (Hu et al. 2021, arXiv:2106.09685): attached by PEFT, started from addressed randomness, exported.

Everything is keyed by `<module>.lora_A.weight` and `<module>.lora_B.weight`, where `<module>` is the adapted layer's
name in the denoiser before the adapter was attached.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from . import loftq, rng
from .errors import CheckpointError, TaskError
from .task import DEFAULT_TARGETS, Lora

Tensors = dict[str, torch.Tensor]

_ADAPTER: Final = "default"
DOWN: Final = ".lora_A.weight"
_MAX_LISTED: Final = 40
_ADAPTABLE: Final = (torch.nn.Linear, torch.nn.Conv2d)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An attached adapter."""

    parameters: dict[str, torch.nn.Parameter]
    """All that is trained, float32, sorted by name."""
    initial: Tensors
    """LoftQ's start values by the same names (float32, CPU), which the export subtracts; empty for other inits."""

    def state(self) -> Tensors:
        """A copy of the trained tensors: float32, on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the adapter with `tensors`: another `state`, or a LoRA file read by `from_diffusers_file`.

        Raises:
            CheckpointError: not exactly the same names and shapes; names the first that differs.
        """
        _require_fit(tensors, self.parameters)
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def warm_start(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Start from another training's LoRA, which acts on the unchanged base.

        Raises:
            CheckpointError: it does not fit, or this adapter's base is not the unchanged one.
        """
        if self.initial:
            raise CheckpointError(
                "a LoRA file acts on the original weights, but lora.init_lora_weights 'loftq' trains on quantised; "
                "start without the file, or with init_lora_weights true"
            )
        self.restore(tensors)


def attach(
    denoiser: torch.nn.Module, lora: Lora, seed: int, *, initial: Mapping[str, torch.Tensor] | None = None
) -> Adapter:
    """Freeze the denoiser and inject a trainable adapter, whose start values depend on nothing but seed and names.

    With `init_lora_weights: "loftq"` the target linear layers' weights are replaced by their quantised values.

    Args:
        denoiser: the model in memory, without an adapter; changed in place.
        lora: rank, targets and kind of initialisation.
        seed: the task's.
        initial: `Adapter.initial` of the training that is continued: LoftQ then quantises the base again, but need not
            decompose it. None starts a training.

    Raises:
        TaskError: the targets match nothing, or something that cannot be adapted.
        CheckpointError: `initial` does not fit.
    """
    layers = find_targets(denoiser, lora.target_modules)
    linears = {name: layer for name, layer in layers.items() if isinstance(layer, torch.nn.Linear)}
    # LoftQ is about matrices: convolutions among the targets keep their weights and get the ordinary start.
    quantised = linears if lora.init_lora_weights == "loftq" else {}
    _require_rank(quantised, lora.rank)
    denoiser.requires_grad_(False)
    _inject(denoiser, layers, lora.rank)
    parameters = _parameters(denoiser, layers)
    if initial is None:
        starts = tensors_by_name(loftq.replace_weights(quantised, lora.rank))
    else:
        _require_fit(initial, {name: parameters[name] for module in quantised for name in tensor_names(module)})
        starts = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in initial.items()}
        loftq.requantise_weights(quantised)
    for name, parameter in parameters.items():
        value = starts[name] if name in starts else _draw(name, tuple(parameter.shape), lora, seed)
        parameter.data = value.to(parameter.device, torch.float32, copy=True)
        parameter.requires_grad_(True)
    return Adapter(parameters, starts)


@contextmanager
def disabled(denoiser: torch.nn.Module) -> Iterator[None]:
    """The denoiser as it is without the adapter; with LoftQ, its quantised self."""
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def tensor_names(module: str) -> tuple[str, str]:
    """The names of an adapted module's down and up matrices."""
    return f"{module}{DOWN}", f"{module}.lora_B.weight"


def tensors_by_name(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Tensors:
    """Each module's (down, up) under their names."""
    return {
        name: tensor for module, pair in pairs.items() for name, tensor in zip(tensor_names(module), pair, strict=True)
    }


def _parameters(denoiser: torch.nn.Module, modules: Iterable[str]) -> dict[str, torch.nn.Parameter]:
    found: dict[str, torch.nn.Parameter] = {}
    for module in modules:
        layer: Any = denoiser.get_submodule(module)
        down, up = tensor_names(module)
        found |= {down: layer.lora_A[_ADAPTER].weight, up: layer.lora_B[_ADAPTER].weight}
    return dict(sorted(found.items()))


def find_targets(denoiser: torch.nn.Module, targets: tuple[str, ...] | str | None) -> dict[str, torch.nn.Module]:
    """The layers that `lora.target_modules` means, by name, sorted.

    As in PEFT: a list holds whole names or ends of names at a dot, a string is a regular expression for the whole name.

    Raises:
        TaskError: a malformed expression, nothing matched, or a match that is neither linear nor a 2-D convolution.
    """
    modules = {name: module for name, module in denoiser.named_modules() if name}
    if isinstance(targets, str):
        matched = _match_expression(targets, modules)
    else:
        matched = _match_ends(DEFAULT_TARGETS if targets is None else targets, modules)
    if not matched:
        shown = "null" if targets is None else repr(targets if isinstance(targets, str) else list(targets))
        raise TaskError(f"lora.target_modules: {shown} matches no layer; there are {_layer_names(modules)}")
    for name in matched:
        if not isinstance(modules[name], _ADAPTABLE):
            inside = _layer_names({other: modules[other] for other in modules if other.startswith(f"{name}.")})
            raise TaskError(
                f"lora.target_modules: {name} is of type {type(modules[name]).__name__}, only Linear and Conv2d layers "
                f"can be adapted" + (f"; name those in it: {inside}" if inside else "")
            )
    return {name: modules[name] for name in sorted(matched)}


def _match_expression(expression: str, names: Iterable[str]) -> list[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise TaskError(f"lora.target_modules: {expression!r} is not a regular expression: {error}") from None
    return [name for name in names if pattern.fullmatch(name)]


def _match_ends(ends: tuple[str, ...], names: Iterable[str]) -> list[str]:
    found = {end: [name for name in names if name == end or name.endswith(f".{end}")] for end in ends}
    matched = {name for matches in found.values() for name in matches}
    for end in (end for end, matches in found.items() if matched and not matches):
        # Lists are shared between models, so this is no error: CLIP's q_proj means nothing to a UNet.
        logger.warning("lora.target_modules: %r matches no layer of this model", end)
    return sorted(matched)


def _layer_names(modules: Mapping[str, torch.nn.Module]) -> str:
    """The distinct ends of the adaptable layers' names, from the last part that is not a number: `to_q`, `to_out.0`."""
    ends = set()
    for name, module in modules.items():
        if isinstance(module, _ADAPTABLE) and (end := re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", name)):
            ends.add(end.group())
    listed = sorted(ends)
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return ", ".join(listed[:_MAX_LISTED]) + more


def _inject(denoiser: torch.nn.Module, layers: Iterable[str], rank: int) -> None:
    config = LoraConfig(
        r=rank,
        # PEFT's default is 8 whatever the rank; equal to the rank, it makes the adapter's scale 1.
        lora_alpha=rank,
        # Exact names as an expression: PEFT would match a list of names by their ends too.
        target_modules="|".join(map(re.escape, layers)),
        init_lora_weights=True,
    )
    # PEFT draws start values, which are all overwritten, from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, denoiser, adapter_name=_ADAPTER)


def _draw(name: str, shape: tuple[int, ...], lora: Lora, seed: int) -> torch.Tensor:
    """The start values that PEFT's initialisation of that name has, from the parameter's own stream."""
    is_up = name.endswith(".lora_B.weight")
    if is_up and lora.init_lora_weights is not False:
        return torch.zeros(shape)
    stream = f"lora init/{name}"
    if lora.init_lora_weights == "gaussian":
        return torch.from_numpy(rng.normal(seed, stream, 0, shape)) / lora.rank
    # He et al. 2015 (arXiv:1502.01852) with a = √5, torch's own choice for linear and convolution layers.
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (torch.from_numpy(rng.uniform(seed, stream, 0, shape)) * 2 - 1) * bound


def _require_rank(layers: Mapping[str, torch.nn.Linear], rank: int) -> None:
    for name, layer in layers.items():
        if rank > min(layer.weight.shape):
            raise TaskError(
                f"lora.rank: {rank} is more than the rank of {name} ({' x '.join(map(str, layer.weight.shape))}), "
                "which lora.init_lora_weights 'loftq' decomposes"
            )


def _require_fit(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors:
            raise CheckpointError(f"the checkpoint's LoRA has no {name}, which lora.target_modules asks for")
        if name not in expected:
            raise CheckpointError(f"the checkpoint's LoRA has {name}, which lora.target_modules leaves out")
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found == wanted:
            continue
        axis = 0 if name.endswith(DOWN) else 1
        if len(found) == len(wanted) and found[:axis] + found[axis + 1 :] == wanted[:axis] + wanted[axis + 1 :]:
            raise CheckpointError(
                f"the checkpoint's LoRA has rank {found[axis]}, lora.rank is {wanted[axis]} (at {name})"
            )
        raise CheckpointError(f"the checkpoint's LoRA is of another model: {name} is {found}, here {wanted}")

"""The LoKr method in memory: Kronecker factors beside frozen layers, trained and exported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from engine.core import rng
from engine.core.canonical_json import canonical_json
from engine.core.errors import NonFiniteError, TaskError
from engine.models.family import Family, Tensors
from engine.task.task import Lora, Task
from engine.training.methods.lokr import split as splits
from engine.training.methods.lokr.layer import change
from engine.training.methods.lokr.spec import has_webui
from engine.training.methods.lokr.split import LEFT, RIGHT, RIGHT_DOWN, Split
from engine.training.methods.lokr.start_file import peft_config, require_fit
from engine.training.methods.lora.adapter import strength_of
from engine.training.methods.lora.dropout import AddressedDropout, Dropping
from engine.training.methods.lora.formats import webui_metadata
from engine.training.methods.lora.formats.names import not_safetensors
from engine.training.methods.lora.formats.start_file import LORA_FILE, METADATA_KEY
from engine.training.methods.lora.spec import WEBUI_FILE
from engine.training.methods.lora.targets import find_targets
from engine.training.methods.method import About, Parameters
from engine.training.methods.warm_start import WarmStart


class LokrTraining:
    """The factors of a denoiser's layers in training; see `Trainable`."""

    is_whole_model = False
    """See `Trainable.is_whole_model`."""

    def __init__(self, family: Family, layers: Mapping[str, Split], parameters: Parameters, strength: float) -> None:
        """
        Args:
            family: the base model.
            layers: the split of each adapted layer, by full name.
            parameters: the factors, float32, by name.
            strength: the factor of every change whose W₂ has a low rank; see `lora.adapter.strength_of`.
        """
        self.parameters = parameters
        self.groups: Sequence[Parameters] = [parameters]
        self.start: Tensors = {}
        self.dropping = Dropping()
        self._family, self._layers, self._strength = family, layers, strength
        self._is_on = True

    def listen(self, name: str, layer: torch.nn.Linear | torch.nn.Conv2d, dropout: AddressedDropout | None) -> None:
        """Add the change to a layer's output from now on, in the output's dtype."""
        split, strength = self._layers[name], self.strength(name)
        names = [f"{name}{end}" for end in split.shapes]

        def added(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if not self._is_on:
                return output
            x = inputs[0].to(output.dtype)
            x = dropout(x) if dropout else x
            own = change(layer, split, x, *(self.parameters[name].to(output.dtype) for name in names))
            return torch.add(output, own, alpha=strength)

        layer.register_forward_hook(added)

    def strength(self, name: str) -> float:
        """Return the factor of a layer's change: 1 where W₂ is one tensor, as in LyCORIS."""
        return 1.0 if self._layers[name].rank is None else self._strength

    def state(self) -> Tensors:
        """See `Trainable.state`."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, trained: Mapping[str, torch.Tensor]) -> None:
        """See `Trainable.restore`."""
        require_fit(trained, {name: tuple(parameter.shape) for name, parameter in self.parameters.items()})
        for name, parameter in self.parameters.items():
            parameter.copy_(trained[name])

    def warm_start(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Start from the tensors of another training's file, which apply at strength 1. Raises CheckpointError."""
        self.restore({name: tensor / self._of_left(name) for name, tensor in tensors.items()})

    def step(self) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """See `Trainable.step`."""
        return nullcontext(list(self.parameters.values()))

    def refresh(self) -> None:
        """See `Trainable.refresh`: the layers compute with the parameters themselves."""

    def micro_batch(self, address: int) -> AbstractContextManager[None]:
        """See `Trainable.micro_batch`: dropout is on."""
        return self.dropping.at(address)

    @contextmanager
    def baseline(self) -> Iterator[None]:
        """See `Trainable.baseline`."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def require_finite(self, step: int) -> None:
        """See `Trainable.require_finite`."""
        for name, tensor in self._exported().items():
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(f"{name} is not finite after step {step}; try a lower learning_rate or lora.alpha")

    def export(self, about: About) -> dict[str, bytes]:
        """See `Trainable.export`: the factors by Diffusers' and PEFT's names, and by those of the web interfaces."""
        tensors = {name: tensor.cpu() for name, tensor in self._exported().items()}
        config = canonical_json(peft_config(about.task.lora, self._layers)).decode()
        files = {LORA_FILE: serialise_tensors(tensors, {METADATA_KEY: config})}
        if has_webui(self._family.spec):
            files[WEBUI_FILE] = self._webui_file(tensors, about)
        return files

    def _webui_file(self, tensors: Tensors, about: About) -> bytes:
        """Return the file for web interfaces: LyCORIS's names, and an alpha equal to the rank, which is strength 1."""
        lora = about.task.lora
        webui: Tensors = {}
        for name, split in self._layers.items():
            own = self._family.webui_name(*name.split(".", 1))
            webui |= {f"{own}{end}": tensors[f"{name}{end}"] for end in split.shapes}
            webui[f"{own}{webui_metadata.ALPHA_ENDING}"] = torch.tensor(float(lora.rank))
        args = {"algo": "lokr", "factor": lora.factor or -1}
        metadata = webui_metadata.describe(webui, about, kind="LoKr") | {
            "ss_network_module": "lycoris.kohya",
            "ss_network_dim": str(lora.rank),
            "ss_network_args": canonical_json(args).decode(),
        }
        return webui_metadata.serialise(webui, metadata)

    def _exported(self) -> Tensors:
        """Return the factors for strength 1."""
        return {name: tensor * self._of_left(name) for name, tensor in self.state().items()}

    def _of_left(self, name: str) -> float:
        """Return the strength for a W₁, in which files have it, and 1 for other factors."""
        return self.strength(name.removesuffix(LEFT)) if name.endswith(LEFT) else 1.0


def attach(
    family: Family, task: Task, device: torch.device, *, start: Tensors | None, warm_start: WarmStart | None
) -> LokrTraining:
    """Add factors to the denoiser's layers; see `Trainable`."""
    spec, lora = family.spec, task.lora
    denoiser = family.parts[spec.denoiser].to(device)
    denoiser.requires_grad_(False)
    found = find_targets(denoiser, spec.targets_of(spec.denoiser, lora.target_modules))
    layers: dict[str, Any] = {spec.lora_name(spec.denoiser, name): layer for name, layer in found.items()}
    for name, layer in layers.items():
        if getattr(layer, "groups", 1) != 1:
            raise TaskError(f"lora.target_modules: {name} is a convolution in groups, which a LoKr cannot adapt")
    sizes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    own = splits.splits_of(sizes, lora.rank, lora.factor)
    shapes = splits.tensor_shapes(own)
    parameters = {
        name: torch.nn.Parameter(_draw(name, shape, lora, task.seed).to(device)) for name, shape in shapes.items()
    }
    training = LokrTraining(family, own, parameters, strength_of(lora))
    for name, layer in layers.items():
        dropout = (
            AddressedDropout(lora.dropout, seed=task.seed, layer=name, dropping=training.dropping)
            if lora.dropout
            else None
        )
        training.listen(name, layer, dropout)
    if warm_start:
        training.warm_start(_read(warm_start.content(warm_start.name)))
    return training


def _read(data: bytes) -> Tensors:
    try:
        return {name: tensor.to(torch.float32) for name, tensor in parse_tensors(data).items()}
    except (SafetensorError, TypeError, ValueError, OverflowError) as error:  # also impossible shapes
        raise not_safetensors(error) from None


def _draw(name: str, shape: tuple[int, ...], lora: Lora, seed: int) -> torch.Tensor:
    """Return start values by LyCORIS's rule, from the parameter's own random stream; see `lora.init_lora_weights`."""
    if lora.init_lora_weights and name.endswith((RIGHT, RIGHT_DOWN)):
        return torch.zeros(shape)
    # He et al. 2015 (arXiv:1502.01852) with a = √5, torch's own choice for linear and convolution layers.
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (torch.from_numpy(rng.uniform(seed, f"lokr init/{name}", 0, shape)) * 2 - 1) * bound

"""The LoRA method in memory: an attached adapter that can be trained and exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from safetensors.torch import save as serialise_tensors

from engine.core.errors import NonFiniteError
from engine.models.components.layer_names import names_of
from engine.models.family import PRECISIONS, Family, Tensors
from engine.task.task import Task
from engine.training.methods.lora.adapter import Adapter, disabled
from engine.training.methods.lora.adapter import attach as attach_adapter
from engine.training.methods.lora.formats import webui_metadata
from engine.training.methods.lora.formats.files import diffusers_state, exported, read_diffusers_file, webui_state
from engine.training.methods.lora.formats.names import tensor_names
from engine.training.methods.lora.formats.start_file import LORA_FILE, peft_config
from engine.training.methods.lora.low_precision import WorkingCopy
from engine.training.methods.lora.spec import WEBUI_FILE
from engine.training.methods.method import About, Parameters
from engine.training.methods.warm_start import WarmStart

ADAPTABLE: Final = (torch.nn.Linear, torch.nn.Conv2d)


class LoraTraining:
    """A family's adapter in training; see `Trainable`."""

    def __init__(self, family: Family, adapter: Adapter, dtype: torch.dtype) -> None:
        """
        Args:
            family: the base model that the adapter is attached to.
            adapter: the adapter.
            dtype: the dtype of the layers' computations.
        """
        self._family = family
        self._adapter = adapter
        self._working_copy = WorkingCopy(adapter.parameters, adapter.fused, dtype)

    @property
    def parameters(self) -> Parameters:
        """See `Trainable.parameters`."""
        return self._adapter.parameters

    @property
    def groups(self) -> Sequence[Parameters]:
        """See `Trainable.groups`."""
        groups: tuple[dict[str, torch.nn.Parameter], ...] = ({}, {})
        for name, parameter in self.parameters.items():
            groups[not self._family.spec.is_denoisers(name)][name] = parameter
        return [group for group in groups if group]

    @property
    def is_whole_model(self) -> bool:
        """See `Trainable.is_whole_model`."""
        return False

    @property
    def start(self) -> Tensors:
        """LoftQ's start values, which the published files subtract; see `Trainable.start`."""
        return self._adapter.initial

    def state(self) -> Tensors:
        """See `Trainable.state`."""
        return self._adapter.state()

    def restore(self, trained: Mapping[str, torch.Tensor]) -> None:
        """See `Trainable.restore`."""
        self._adapter.restore(trained)

    def step(self) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """See `Trainable.step`: gradients are taken of a copy in the precision that the layers compute in."""
        return self._working_copy.taken()

    def refresh(self) -> None:
        """See `Trainable.refresh`: the layers' copies are made at the beginning of a step."""

    def micro_batch(self, address: int) -> AbstractContextManager[None]:
        """See `Trainable.micro_batch`: dropout is on."""
        return self._adapter.dropping.at(address)

    def baseline(self) -> AbstractContextManager[None]:
        """See `Trainable.baseline`: the adapters are switched off; with LoftQ the denoiser stays quantised."""
        return disabled([self._family.denoiser, *self._family.text_encoders.values()])

    def require_finite(self, step: int) -> None:
        """See `Trainable.require_finite`: multiplied by the adapter's strength, finite weights may overflow float32."""
        for module, pair in exported(self._adapter):
            for name, tensor in zip(tensor_names(module), pair, strict=True):
                if not bool(torch.isfinite(tensor).all()):
                    raise NonFiniteError(
                        f"{name} is not finite after step {step}; try a lower learning_rate or lora.alpha"
                    )

    def export(self, about: About) -> dict[str, bytes]:
        """See `Trainable.export`: the LoRA in the formats of Diffusers and of the web interfaces."""
        files = {LORA_FILE: serialise_tensors(diffusers_state(self._adapter))}
        spec = self._family.spec
        if spec.has_webui:

            def rows(module: str) -> tuple[int, int] | None:
                component, own = module.split(".", 1)
                is_denoisers = component == spec.denoiser
                return spec.webui_rows(about.base.config, own) if spec.webui_rows and is_denoisers else None

            tensors = webui_state(self._adapter, self._family.webui_name, rows)
            files[WEBUI_FILE] = webui_metadata.serialise(tensors, webui_metadata.describe(tensors, about))
        return files


def attach(
    family: Family, task: Task, device: torch.device, *, start: Tensors | None, warm_start: WarmStart | None
) -> LoraTraining:
    """Attach an adapter to the denoiser and, if they are trained, the text encoders; see `Trainable`."""
    names = family.spec.trained_components(with_text_encoders=task.train_args.train_text_encoder)
    components = {name: family.parts[name].to(device) for name in names}
    foreign = _foreign_names(family, components) if warm_start else {}
    adapter = attach_adapter(components, task.lora, task.seed, spec=family.spec, initial=start)
    if warm_start:
        weights, config = warm_start.content(warm_start.name), peft_config(warm_start)
        adapter.warm_start(read_diffusers_file(weights, family.spec, components, names=foreign, config=config))
    return LoraTraining(family, adapter, PRECISIONS[task.mixed_precision])


def _foreign_names(family: Family, components: Mapping[str, torch.nn.Module]) -> dict[str, str]:
    """Return other programs' names of the components' layers, which have no adapter yet; see `names_of`."""
    layers = {
        component: [name for name, module in root.named_modules() if isinstance(module, ADAPTABLE)]
        for component, root in components.items()
    }
    config: Any = family.denoiser.config
    return names_of(family.spec, layers, config)

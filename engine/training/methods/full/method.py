"""Whole-model training in memory: float32 masters of all weights, and the modules that compute in the task's precision.

In 16 bits the modules hold rounded copies of the masters, as in mixed-precision training (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.1). They are what is published, so that images are drawn with just the published weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch

from engine.core.errors import CheckpointError, ModelError, NonFiniteError
from engine.models.family import PRECISIONS, Family, Tensors
from engine.task.task import Task
from engine.training.methods.full.checks import OTHER_MODEL, require_same_shapes
from engine.training.methods.full.export import exported, published_name, stored_buffers
from engine.training.methods.full.files import CONFIG
from engine.training.methods.method import About, Parameters, Pieces
from engine.training.methods.warm_start import WarmStart

_NOT_COMPUTED: Final = frozenset({"sample_size", "dtype", "torch_dtype", "transformers_version", "architectures"})
"""Keys of a component's configuration that do not change what its layers compute."""


class FullTraining:
    """The trained components of a base model; see `Trainable`."""

    is_whole_model = True

    def __init__(self, family: Family, components: Mapping[str, torch.nn.Module], dtype: torch.dtype) -> None:
        """
        Args:
            family: the base model.
            components: those that are trained, by name: float32, on their device; changed to `dtype`.
            dtype: the dtype in which they compute and are published.
        """
        self._family = family
        self._components = components
        layers: dict[str, torch.nn.Parameter] = {}
        for component, root in components.items():
            layers |= _named(family, component, root)
        self._layers = dict(sorted(layers.items()))
        self._parameters = self._layers
        if dtype != torch.float32:
            self._parameters = {name: torch.nn.Parameter(layer.data) for name, layer in self._layers.items()}
            for layer in self._layers.values():
                layer.data = layer.data.to(dtype)
            for buffer in (one for root in components.values() for one in stored_buffers(root).values()):
                buffer.data = buffer.data.to(dtype)  # as they are where the published files are loaded
        for layer in self._layers.values():
            layer.requires_grad_(True)

    @property
    def parameters(self) -> Parameters:
        """See `Trainable.parameters`: the masters."""
        return self._parameters

    @property
    def groups(self) -> Sequence[Parameters]:
        """See `Trainable.groups`."""
        groups: tuple[dict[str, torch.nn.Parameter], ...] = ({}, {})
        for name, parameter in self._parameters.items():
            groups[not self._family.spec.is_denoisers(name)][name] = parameter
        return [group for group in groups if group]

    @property
    def start(self) -> Tensors:
        """See `Trainable.start`: nothing but the parameters is needed."""
        return {}

    def state(self) -> Tensors:
        """See `Trainable.state`."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def restore(self, trained: Mapping[str, torch.Tensor]) -> None:
        """See `Trainable.restore`."""
        for name in sorted(trained.keys() | self._parameters.keys()):
            if name not in trained or name not in self._parameters:
                where = "is missing from the checkpoint" if name not in trained else "is not trained by this task"
                raise CheckpointError(f"the trained parameter {name} {where}; use another checkpoint")
            if trained[name].shape != self._parameters[name].shape:
                raise CheckpointError(f"the checkpoint's {name} has another shape than the base model's")
        for name, parameter in self._parameters.items():
            parameter.copy_(trained[name])
        self.refresh()

    def step(self) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """See `Trainable.step`: gradients are taken of the modules' own weights, in the task's precision."""
        return nullcontext(list(self._layers.values()))

    @torch.no_grad()
    def refresh(self) -> None:
        """See `Trainable.refresh`: round the masters to the modules' precision."""
        if self._parameters is not self._layers:
            torch._foreach_copy_(list(self._layers.values()), list(self._parameters.values()))

    def micro_batch(self, address: int) -> AbstractContextManager[None]:
        """See `Trainable.micro_batch`: nothing is random."""
        return nullcontext()

    @contextmanager
    def baseline(self) -> Iterator[None]:
        """See `Trainable.baseline`: the base model's weights are read again, one component at a time."""
        kept: dict[str, torch.Tensor] = {}
        try:
            for component in self._components:
                for name, parameter in _named(self._family, component, self._family.load_part(component)).items():
                    layer = self._layers[name]
                    kept[name] = layer.data
                    layer.data = parameter.data.to(layer.device, layer.dtype)
            yield
        finally:
            for name, data in kept.items():
                self._layers[name].data = data

    def require_finite(self, step: int) -> None:
        """See `Trainable.require_finite`: rounded to float16, finite weights may overflow."""
        for name, layer in self._layers.items():
            if not bool(torch.isfinite(layer).all()):
                raise NonFiniteError(f"{name} is not finite after step {step}; try a lower learning_rate")

    def export(self, about: About) -> dict[str, bytes | Pieces]:
        """See `Trainable.export`: a folder for each component."""
        return {
            name: content
            for component, module in self._components.items()
            for name, content in exported(self._family.spec, component, module).items()
        }


def _named(family: Family, component: str, module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return a component's parameters by full name: `<component>.<name in its published file>`."""
    return {
        f"{component}.{published_name(family.spec, component, module, name)}": parameter
        for name, parameter in module.named_parameters()
    }


def attach(
    family: Family, task: Task, device: torch.device, *, start: Tensors | None, warm_start: WarmStart | None
) -> FullTraining:
    """Prepare all weights of the denoiser and, if they are trained, of the text encoders; see `Trainable`."""
    names = family.spec.trained_components(with_text_encoders=task.train_args.train_text_encoder)
    for part in family.parts.values():
        part.requires_grad_(False)
    components = {name: family.parts[name].to(device) for name in names}
    for name, module in components.items() if warm_start else ():
        assert warm_start is not None
        if f"{name}/{CONFIG}" in warm_start.hashes:
            _start_from(module, family, name, warm_start)
    return FullTraining(family, components, PRECISIONS[task.mixed_precision])


@torch.no_grad()
def _start_from(module: torch.nn.Module, family: Family, component: str, warm_start: WarmStart) -> None:
    """Overwrite a component's weights with those to start from.

    Raises:
        CheckpointError: they are malformed, or of another model.
    """
    # Before anything is built as it says: a stranger's model may be huge.
    _require_alike(component, _configuration(warm_start.content(f"{component}/{CONFIG}")), _computed(module))
    try:
        other = family.load_part(component, warm_start.folder)
    except ModelError as error:  # its text is about a base model
        raise CheckpointError(f"the weights to start from do not load: {error}") from None
    warm_start.require_unchanged(component)
    found, expected = (dict(one.named_parameters()) for one in (other, module))
    require_same_shapes(*({name: tuple(p.shape) for name, p in one.items()} for one in (found, expected)))
    _require_same_config(component, other, module)
    for name, parameter in expected.items():
        if not bool(torch.isfinite(found[name]).all()):
            raise CheckpointError(f"the weights to start from hold values that are not finite: {component}.{name}")
        parameter.copy_(found[name])


def _require_same_config(component: str, other: torch.nn.Module, module: torch.nn.Module) -> None:
    """Raise CheckpointError if two configurations differ in what the layers compute; it names the first difference."""
    theirs, ours = (_computed(one) for one in (other, module))
    missing: dict[str, Any] = dict.fromkeys(theirs.keys() | ours.keys())
    _require_alike(component, missing | theirs, missing | ours)


def _configuration(data: bytes) -> dict[str, Any]:
    """Return a configuration of an unknown origin. Raises CheckpointError if it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"the weights to start from have a {CONFIG} that is not a configuration")
    return found


def _require_alike(component: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a value differs that both have; it names the first."""
    for key in sorted(theirs.keys() & ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise CheckpointError(
                f"{OTHER_MODEL}: {key} is {theirs.get(key)!r} in its {component}/{CONFIG}, {ours.get(key)!r} in the "
                "base model's"
            )


def _computed(module: Any) -> dict[str, Any]:
    described = module if hasattr(module, "to_json_string") else module.config
    config: dict[str, Any] = json.loads(described.to_json_string())
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in _NOT_COMPUTED}

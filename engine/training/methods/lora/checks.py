"""Checks of a LoRA task that need no loaded model: they read only headers of files. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engine.core.errors import CheckpointError
from engine.core.messages import plural
from engine.models.base_model import BaseModel
from engine.models.components.layer_names import is_foreign, names_of
from engine.models.spec import FamilySpec
from engine.task.task import Task
from engine.training.methods.base_weights import weight_shapes
from engine.training.methods.lora.formats.names import (
    not_safetensors,
    places,
    refuse_other_kinds,
    require_room,
    tensor_names,
)
from engine.training.methods.lora.formats.start_file import header_metadata, peft_config, strengths
from engine.training.methods.lora.targets import (
    NO_QUANTISED_START,
    match_targets,
    require_decomposable,
)
from engine.training.methods.warm_start import WarmStart

_WEIGHT: Final = ".weight"
_KINDS: Final = {2: "Linear", 4: "Conv2d"}
"""The type of layer of a weight, by its number of dimensions."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor's shape, without the tensor."""

    shape: tuple[int, ...]


def check(base: BaseModel, task: Task, warm_start: WarmStart | None) -> list[str]:
    """Check the target layers, and a LoRA to start from, against the base model's weights.

    Returns:
        Lines on what was not checked.

    Raises:
        TaskError: `lora.target_modules` matches no layer of the base model, or one that cannot be adapted.
        CheckpointError: a LoRA to start from is malformed, or of another rank, other layers or another model.
        ModelError: the weights are malformed.
    """
    family = base.family
    components = family.trained_components(with_text_encoders=task.train_args.train_text_encoder)
    shapes = {component: weight_shapes(base, component) for component in components}
    layers = {
        component: target_shapes(family.targets_of(component, task.lora.target_modules), found)
        for component, found in shapes.items()
        if found
    }
    lines = []
    if family.denoiser not in layers:
        lines.append(not_checked(base))
    elif task.lora.init_lora_weights == "loftq":
        lines += _check_loftq(family, layers[family.denoiser], task.lora.rank, warm_start)
    if warm_start:
        expected = _expected(family, layers, task.lora.rank) if layers.keys() == set(components) else None
        names = {} if expected is None else _foreign_names(base, shapes)
        _check_warm_start(warm_start, family, components, names, expected)
    return lines


def not_checked(base: BaseModel) -> str:
    """Return the line about a denoiser whose layers are not known yet."""
    where = "in one file" if base.place(base.family.denoiser).single_file else "not downloaded yet"
    return f"note: lora.target_modules is checked when the job starts: the base model's weights are {where}"


def target_shapes(targets: tuple[str, ...] | str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the target layers among a component's tensors, with their weights' shapes."""
    kinds: dict[str, str | None] = {}
    for name, shape in shapes.items():
        module, _, last = name.rpartition(".")
        parents = module.split(".")
        for depth in range(1, len(parents)):
            kinds.setdefault(".".join(parents[:depth]), "a group of layers")
        if last == "weight":
            kinds[module] = (
                None
                if len(shape) in _KINDS
                else f"of another type (its weight has {plural(len(shape), 'axis', 'axes')})"
            )
        else:
            kinds.setdefault(module, "of another type")
    return {name: shapes[f"{name}{_WEIGHT}"] for name in match_targets(kinds, targets)}


def _check_loftq(
    family: FamilySpec, layers: Mapping[str, tuple[int, ...]], rank: int, warm_start: WarmStart | None
) -> list[str]:
    """Check the denoiser's linear layers, which LoftQ quantises; return a line if there is none."""
    linear = {name: shape for name, shape in layers.items() if _KINDS[len(shape)] == "Linear"}
    linear = {family.lora_name(family.denoiser, name): shape for name, shape in linear.items()}
    require_decomposable(linear, rank)
    if linear and warm_start:
        raise CheckpointError(NO_QUANTISED_START)
    return [] if linear else ["note: lora.init_lora_weights 'loftq' has no effect: no target is a linear layer"]


def _check_warm_start(
    warm_start: WarmStart,
    family: FamilySpec,
    components: Sequence[str],
    names: Mapping[str, str],
    expected: Mapping[str, Shape] | None,
) -> None:
    """Check by names and shapes that a LoRA can be read by `files` and fits the `adapter`.

    Args:
        warm_start: the LoRA.
        family: the base model's family.
        components: the trained components.
        names: see `names_of`.
        expected: the adapter's matrices; None if the base model's layers are not known yet.
    """
    weights = warm_start.content(warm_start.name)
    shapes = shapes_in(weights)
    refuse_other_kinds(shapes)
    known = [key for key in shapes if expected is not None or not is_foreign(key)]
    found = {
        tensor_names(module)[kind == "lora_B"]: Shape(shapes[key])
        for key, (module, kind) in places(known, family, components, names).items()
        if kind != "alpha"
    }
    strengths(components, metadata=header_metadata(weights), config=peft_config(warm_start))
    if wrong := next((name for name, one in found.items() if len(one.shape) < 2), None):
        raise CheckpointError(f"the LoRA file's {wrong} has shape {found[wrong].shape}; use another file")
    if expected is not None:
        require_room(found, expected)


def _expected(family: FamilySpec, layers: Mapping[str, Mapping[str, tuple[int, ...]]], rank: int) -> dict[str, Shape]:
    """Return the adapter's matrices for the target layers of all trained components."""
    expected: dict[str, Shape] = {}
    for component, own_layers in layers.items():
        for module, (outer, inner, *kernel) in own_layers.items():
            down, up = tensor_names(family.lora_name(component, module))
            expected[down] = Shape((rank, inner, *kernel))
            expected[up] = Shape((outer, rank, *(1 for _ in kernel)))
    return expected


def _foreign_names(base: BaseModel, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> dict[str, str]:
    """Return other programs' names of the layers with these weights; see `names_of`."""
    layers = {
        component: [
            name.removesuffix(_WEIGHT) for name, shape in own.items() if name.endswith(_WEIGHT) and len(shape) in _KINDS
        ]
        for component, own in shapes.items()
    }
    return names_of(base.family, layers, base.config(base.family.denoiser))


def shapes_in(data: bytes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors. Raises CheckpointError."""
    from safetensors import SafetensorError, deserialize

    try:
        # Untyped: it returns a list of names, each with dtype, shape and bytes.
        entries = deserialize(data)  # type: ignore[no-untyped-call]
        return {name: tuple(entry["shape"]) for name, entry in entries}
    except (SafetensorError, TypeError, ValueError, OverflowError) as error:
        raise not_safetensors(error) from None

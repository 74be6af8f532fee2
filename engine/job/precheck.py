"""What can be refused before a model is loaded, by the headers of files: for `--plan` and the job. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engine.core.errors import CheckpointError, OutputError
from engine.core.files import atomic_files
from engine.core.messages import plural
from engine.core.process.gpus import num_gpus
from engine.job import memory
from engine.job.advice import disk_space
from engine.job.job import Job
from engine.models.base_model_files import is_weight
from engine.models.single_file.header import Tensor, read_header
from engine.models.spec import FamilySpec
from engine.results.checkpoint import Checkpoint, WarmStart
from engine.results.output.contents import Claim, OutputContents
from engine.task.settings import Settings
from engine.training.methods.lora.names import places, require_fit, tensor_names
from engine.training.methods.lora.strength import header_metadata, strengths
from engine.training.methods.lora.targets import (
    NO_QUANTISED_START,
    match_targets,
    require_decomposable,
)

_WEIGHT: Final = ".weight"
_KINDS: Final = {2: "Linear", 4: "Conv2d"}
"""What a weight of so many dimensions belongs to."""
_SHARD: Final = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")


@dataclass(frozen=True, slots=True)
class _Shape:
    shape: tuple[int, ...]


def check_adapter(job: Job) -> list[str]:
    """Check the adapter's layers and a warm start against the base model's weights; lines on what was not checked.

    Raises:
        TaskError: `lora.target_modules` names no layer of the base model, or none that can be adapted.
        CheckpointError: a LoRA to start from is no such file, or another adapter's or model's.
        ModelError: the weights are malformed.
    """
    family = job.base.family
    components = family.trained_components(with_text_encoders=job.task.train_args.train_text_encoder)
    shapes = {component: _weights(job, component) for component in components}
    layers = {component: _targets(job, component, found) for component, found in shapes.items() if found}
    lines = []
    if family.denoiser not in layers:
        where = "in one file" if job.base.single_file else "not downloaded yet"
        lines.append(f"note: lora.target_modules is checked when the job starts: the base model's weights are {where}")
    elif job.task.lora.init_lora_weights == "loftq":
        lines += _check_loftq(job, layers[family.denoiser])
    if isinstance(job.parent, WarmStart):
        _check_warm_start(job.parent, family, components, job.task.lora.rank, layers)
    return lines


def check_output(job: Job, output: OutputContents, *, overwrite: bool) -> None:
    """Refuse an output folder that the job would refuse. Changes nothing.

    Raises:
        OutputError: another job's result or progress is in it, nothing can be written to it, or too little.
    """
    root, parent = output.root, job.parent
    is_over = isinstance(parent, Checkpoint) and parent.finished and job.step_range.num_steps == 0
    with atomic_files.writing_to(root):  # which would not be allowed to, either
        if found := atomic_files.obstacle(root):
            raise OutputError(f"cannot write to {root}: {found}; remove it, or choose another folder")
        place = next(path for path in (root, *root.parents) if path.exists())
        if not os.access(place, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write to {root}: make {place} writable for the user that runs the job")
        if place.resolve().is_relative_to("/proc") or place.resolve().is_relative_to("/sys"):  # open to root, it seems
            raise OutputError(f"cannot write to {root}: {place} is the kernel's; choose another folder")
        if job.in_place and is_over:  # the job would find nothing to do
            return
        if output.look(job.record, in_place=job.in_place, overwrite=overwrite) is not Claim.FINISHED:
            disk_space.require(job, root)


def check_device(settings: Settings) -> list[str]:
    """Return a note where the device is not there: it may be elsewhere, where the job is to run."""
    if settings.device == "cpu" or num_gpus():
        return []
    return [
        "note: no GPU is visible here, and without one the job ends with code 9: start the container with --gpus all, "
        "or set DEVICE=cpu to train on the CPU"
    ]


def check_memory(job: Job, device: str, *, available: int | None, num_processes: int) -> None:
    """Refuse a job that is predicted to take far more memory than it could have.

    Args:
        job: what would run.
        device: cuda or cpu.
        available: bytes that each process may take; None is unknown, as of a GPU before torch is imported.
        num_processes: the number of processes that are known to share this machine's memory.

    Raises:
        DeviceMemoryError: says what would fit.
    """
    most = available
    if device == "cpu" and (most := memory.most_bytes()) is not None:
        most //= num_processes
    continues = isinstance(job.parent, Checkpoint)
    memory.require_enough(job.base, job.task, device=device, available=available, most=most, continues=continues)


def _weights(job: Job, component: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a component's tensors; empty where its weights are not at hand under Diffusers' names."""
    if job.base.single_file is not None:
        return {}
    variant = job.base.variants.get(component)
    paths = [p for p in sorted((job.base.folder / component).glob("*.safetensors")) if is_weight(p.name, variant)]
    shards = [match for path in paths if (match := _SHARD.search(path.name))]
    if shards and len(shards) != int(shards[0][1]):  # others are still to be downloaded
        return {}
    found: dict[str, Tensor] = {}
    for path in paths:
        found |= read_header(path, f"{component}/{path.name}").tensors
    return {name: tensor.shape for name, tensor in found.items()}


def _targets(job: Job, component: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The layers of a component that get an adapter, and their weights' shapes."""
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
    targets = job.base.family.targets_of(component, job.task.lora.target_modules)
    return {name: shapes[f"{name}{_WEIGHT}"] for name in match_targets(kinds, targets)}


def _check_loftq(job: Job, layers: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What LoftQ would say of the denoiser's layers, of which it quantises the linear ones; a line where none is."""
    family = job.base.family
    linear = {name: shape for name, shape in layers.items() if _KINDS[len(shape)] == "Linear"}
    linear = {family.lora_name(family.denoiser, name): shape for name, shape in linear.items()}
    require_decomposable(linear, job.task.lora.rank)
    if linear and isinstance(job.parent, WarmStart):
        raise CheckpointError(NO_QUANTISED_START)
    return [] if linear else ["note: lora.init_lora_weights 'loftq' has no effect: no target is a linear layer"]


def _check_warm_start(
    parent: WarmStart,
    family: FamilySpec,
    components: Sequence[str],
    rank: int,
    layers: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> None:
    """As `lora.files` reads it and `lora.adapter` fits it, by names and shapes alone."""
    shapes = _lora_shapes(parent.lora)
    found = {
        tensor_names(module)[kind == "lora_B"]: _Shape(shapes[key])
        for key, (module, kind) in places(shapes, family, components).items()
        if kind != "alpha"
    }
    strengths(components, metadata=header_metadata(parent.lora), config=parent.config)
    if layers.keys() != set(components):
        return
    expected: dict[str, _Shape] = {}
    for component, own_layers in layers.items():
        for module, (outer, inner, *kernel) in own_layers.items():
            down, up = tensor_names(family.lora_name(component, module))
            expected[down] = _Shape((rank, inner, *kernel))
            expected[up] = _Shape((outer, rank, *(1 for _ in kernel)))
    require_fit(found, expected)


def _lora_shapes(data: bytes) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, deserialize

    try:
        # No stub says so: a list of names with their dtype, shape and bytes.
        entries = deserialize(data)  # type: ignore[no-untyped-call]
        return {name: tuple(entry["shape"]) for name, entry in entries}
    except (SafetensorError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).split("\n", 1)[0][:200]
        raise CheckpointError(f"the LoRA file is not a safetensors file ({reason!r}); take another file") from None

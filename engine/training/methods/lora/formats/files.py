"""LoRA files: write an adapter for Diffusers and the web interfaces, and read the files of other trainers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors

from engine.core.errors import CheckpointError
from engine.models.family import Tensors
from engine.models.spec import FamilySpec
from engine.training.methods.lora.adapter import Adapter, tensors_by_name
from engine.training.methods.lora.formats.names import DOWN, not_safetensors, places, tensor_names
from engine.training.methods.lora.formats.start_file import header_metadata, strengths

_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of matrices that are read."""


def diffusers_state(adapter: Adapter) -> Tensors:
    """Return the adapter in Diffusers' and PEFT's format: `<component>.<module>.lora_A.weight`, float32, on the CPU.

    It applies to the original base model at strength 1, without metadata or alpha.
    """
    return tensors_by_name(dict(exported(adapter)))


Rows = tuple[int, int]
"""The first row of a part of a layer, and the number of rows of the layer."""


def webui_state(
    adapter: Adapter, webui_name: Callable[[str, str], str], rows: Callable[[str], Rows | None] = lambda module: None
) -> Tensors:
    """Return the adapter in the format of ComfyUI, AUTOMATIC1111/Forge and kohya's tools: float32, on the CPU.

    `<name>.lora_down.weight`, `<name>.lora_up.weight`, and `<name>.alpha`, a scalar equal to the rank: strength 1.

    Args:
        adapter: the adapter.
        webui_name: returns the name of a component's module in this format, such as `lora_te_…`.
        rows: returns which rows of the layer with its name a module (`<component>.<module>`) is; None for all of them.
    """
    layers: dict[str, list[_Part]] = {}
    for module, pair in exported(adapter):
        layers.setdefault(webui_name(*module.split(".", 1)), []).append((pair, rows(module)))
    tensors: Tensors = {}
    for name, parts in layers.items():
        down, up = _joined(parts)
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


_Part = tuple[tuple[torch.Tensor, torch.Tensor], Rows | None]
"""A module's down and up matrices, and its place in a layer."""


def _joined(parts: Sequence[_Part]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the down and up matrices of a layer of which several modules are parts.

    With modules q and k they are [A_q; A_k], and B_q and B_k in a matrix of zeros, each in its module's rows and in the
    columns of its A. Rows of no module do not change. The rank is the sum of theirs. A module's rows that do not fit
    behind its first one begin at the top.
    """
    pair, rows = parts[0]
    if rows is None:
        return pair
    down = torch.cat([own for (own, _), _ in parts])
    up, column = torch.zeros(rows[1], len(down)), 0
    for (_, own), place in parts:
        assert place is not None
        up[(place[0] + torch.arange(len(own))) % place[1], column : column + own.shape[1]] = own
        column += own.shape[1]
    return down, up


def exported(adapter: Adapter) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Yield each module's down and up matrices for the original base model, with the adapter's strength folded in.

    A LoftQ adapter was trained on quantised weights ≈ W - B₀·A₀, and started at A₀, B₀. On the original W its change is
    B·A - B₀·A₀: a LoRA of twice the rank, [B, -B₀]·[A; A₀], which has no effect before training. Its convolutions are
    padded with zeros, because Diffusers ignores alphas that differ between the layers of a webui file.
    """
    tensors = adapter.state()
    for module in (name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)):
        down, up = (tensors[name].to("cpu", copy=True) for name in tensor_names(module))
        if adapter.initial:
            names = tensor_names(module)
            start_down = adapter.initial.get(names[0], torch.zeros_like(down))
            start_up = adapter.initial.get(names[1], torch.zeros_like(up))
            down, up = torch.cat([down, start_down], dim=0), torch.cat([up, -start_up], dim=1)
        yield module, (down, up * adapter.strength)


def from_diffusers_file(
    tensors: Mapping[str, torch.Tensor],
    spec: FamilySpec,
    *,
    components: Collection[str],
    names: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
    config: bytes | None = None,
) -> Tensors:
    """Return the tensors of a LoRA file, written by any trainer, for `Adapter.warm_start`.

    It understands PEFT's names (`lora_A`, `lora_B`), also as PEFT itself saves them (`base_model.model.…`,
    `lora_A.default`), and Diffusers' older ones (`to_q.lora.down`, `processor.to_q_lora.down`,
    `q_proj.lora_linear_layer.down`), in any mixture, and for the denoiser also without the component's name, and the
    names of kohya's tools, web interfaces and ComfyUI. Alpha is folded into the up matrices: exactly if alpha / rank is
    a power of two, else rounded once.

    Args:
        tensors: the file's tensors.
        spec: the base model's family.
        components: the trained components.
        names: the layers' names in other programs (`layer_names.names_of`).
        metadata: the file's metadata, where Diffusers stores rank and alpha.
        config: PEFT's adapter_config.json, which contains them; None if there is none.

    Returns:
        float32 tensors by the adapter's names.

    Raises:
        CheckpointError: the file is not a LoRA in these formats, or adapts other components as well.
    """
    parts: dict[str, Tensors] = {kind: {} for kind in ("lora_A", "lora_B", "alpha")}
    for key, (module, kind) in places(tensors, spec, components, names).items():
        parts[kind][module] = _checked(key, kind, tensors[key].detach())
    scales = strengths(components, metadata=metadata, config=config)
    found: Tensors = {}
    for module, down in parts["lora_A"].items():
        found[tensor_names(module)[0]] = down.clone()
    for module, up in parts["lora_B"].items():
        alpha = parts["alpha"].get(module)
        own = scales[module.split(".", 1)[0]]
        scale = own.of(module) if alpha is None else float(alpha) / up.shape[1]
        strong = up * scale
        if not bool(torch.isfinite(strong).all()):
            raise CheckpointError(f"the LoRA file's alpha for {module} is too large; use another file")
        found[tensor_names(module)[1]] = strong
    return found


def read_diffusers_file(
    data: bytes,
    spec: FamilySpec,
    components: Collection[str],
    *,
    names: Mapping[str, str],
    config: bytes | None = None,
) -> Tensors:
    """Do the same as `from_diffusers_file` for the bytes of a file.

    Raises:
        CheckpointError: as `from_diffusers_file`, or not a safetensors file.
    """
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, TypeError, ValueError, OverflowError) as error:  # also impossible shapes
        raise not_safetensors(error) from None
    return from_diffusers_file(
        tensors, spec, components=components, names=names, metadata=header_metadata(data), config=config
    )


def _checked(key: str, kind: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32. Raise CheckpointError for a dtype or shape that is not a LoRA's, or other values.

    Integers and 8-bit numbers are quantised weights, whose scale is elsewhere; an alpha may be an integer.
    """
    if tensor.dtype not in _DTYPES and not (kind == "alpha" and tensor.dtype == torch.int64):
        raise CheckpointError(
            f"the LoRA file's {key} has the type {str(tensor.dtype).removeprefix('torch.')}; use a file in float32 or "
            "16 bits"
        )
    tensor = tensor.to(torch.float32)
    is_shaped = tensor.numel() == 1 if kind == "alpha" else tensor.ndim >= 2 and tensor.numel() > 0
    if not is_shaped:
        raise CheckpointError(f"the LoRA file's {key} has shape {tuple(tensor.shape)}; use another file")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"the LoRA file's {key} holds values that are not finite; use another file")
    return tensor

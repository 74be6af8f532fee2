"""An adapter as files: written for Diffusers and the web interfaces, read from any trainer that writes Diffusers'."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors

from engine.core.errors import CheckpointError
from engine.models.spec import FamilySpec
from engine.training.methods.lora.adapter import Adapter, Tensors, tensors_by_name
from engine.training.methods.lora.names import DOWN, places, tensor_names
from engine.training.methods.lora.start_file import header_metadata, strengths


def diffusers_state(adapter: Adapter) -> Tensors:
    """The adapter as Diffusers and PEFT load it: `<component>.<module>.lora_A.weight`, float32, on the CPU.

    It acts on the original base model and at strength 1 by itself, with neither metadata nor alpha.
    """
    return tensors_by_name(_exported(adapter))


def webui_state(adapter: Adapter, webui_name: Callable[[str, str], str]) -> Tensors:
    """The adapter as ComfyUI, AUTOMATIC1111/Forge and kohya's tools load it: float32, on the CPU.

    `<name>.lora_down.weight`, `<name>.lora_up.weight`, and `<name>.alpha`, a scalar equal to the rank: strength 1.

    Args:
        adapter: the adapter.
        webui_name: a component and a module in it to their name in this format: `lora_te_…`.
    """
    tensors: Tensors = {}
    for module, (down, up) in _exported(adapter).items():
        name = webui_name(*module.split(".", 1))
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


def _exported(adapter: Adapter) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each adapted module's down and up matrices for the original base, at strength 1: the adapter's own is folded in.

    A LoftQ adapter was trained on quantised weights ≈ W - B₀·A₀, and started at A₀, B₀. On the original W its change is
    B·A - B₀·A₀: a LoRA of twice the rank, [B, -B₀]·[A; A₀], which does nothing before training. Its convolutions are
    filled up with zeros, because Diffusers ignores alphas that differ between the layers of a webui file.
    """
    tensors, pairs = adapter.state(), {}
    for module in (name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)):
        down, up = (tensors[name] for name in tensor_names(module))
        if adapter.initial:
            start_down, start_up = (
                adapter.initial.get(name, torch.zeros_like(tensors[name])) for name in tensor_names(module)
            )
            down, up = torch.cat([down, start_down], dim=0), torch.cat([up, -start_up], dim=1)
        pairs[module] = (down, up * adapter.strength)
    return pairs


def from_diffusers_file(
    tensors: Mapping[str, torch.Tensor],
    spec: FamilySpec,
    *,
    components: Collection[str],
    metadata: Mapping[str, str] | None = None,
    config: bytes | None = None,
) -> Tensors:
    """A LoRA file of any trainer that writes `pytorch_lora_weights.safetensors`, as `Adapter.warm_start` takes it.

    Reads PEFT's spelling (`lora_A`, `lora_B`), also as PEFT itself saves it (`base_model.model.…`,
    `lora_A.default`), and Diffusers' older ones (`to_q.lora.down`, `processor.to_q_lora.down`,
    `q_proj.lora_linear_layer.down`), also mixed and, for the denoiser, without the component's name, and folds alpha
    into the up matrices.

    Args:
        tensors: the file's.
        spec: of the model's family.
        components: those that are trained.
        metadata: the file's; Diffusers keeps there what is no tensor: rank and alpha.
        config: PEFT's adapter_config.json, which has these; None where there is none.

    Returns:
        float32 tensors by the adapter's names.

    Raises:
        CheckpointError: not such a file, or one that adapts more than the components.
    """
    parts: dict[str, Tensors] = {kind: {} for kind in ("lora_A", "lora_B", "alpha")}
    for key, (module, kind) in places(tensors, spec, components).items():
        parts[kind][module] = _checked(key, kind, tensors[key].detach().to(torch.float32))
    scales = strengths(components, metadata=metadata, config=config)
    found: Tensors = {}
    for module, down in parts["lora_A"].items():
        found[tensor_names(module)[0]] = down.clone()
    for module, up in parts["lora_B"].items():
        alpha = parts["alpha"].get(module)
        scale = scales[module.split(".", 1)[0]] if alpha is None else float(alpha) / up.shape[1]
        found[tensor_names(module)[1]] = up * scale
    return found


def read_diffusers_file(
    data: bytes, spec: FamilySpec, components: Collection[str], *, config: bytes | None = None
) -> Tensors:
    """The same from the file's bytes.

    Raises:
        CheckpointError: as `from_diffusers_file`, or not a safetensors file.
    """
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, TypeError, ValueError, OverflowError) as error:  # shapes that no tensor can have, too
        reason = str(error).split("\n", 1)[0][:200]
        raise CheckpointError(f"the LoRA file is not a safetensors file ({reason!r}); take another file") from None
    return from_diffusers_file(tensors, spec, components=components, metadata=header_metadata(data), config=config)


def _checked(key: str, kind: str, tensor: torch.Tensor) -> torch.Tensor:
    """What a stranger's file must not bring along: shapes without a rank, and numbers that would end the training."""
    is_shaped = tensor.numel() == 1 if kind == "alpha" else tensor.ndim >= 2 and tensor.numel() > 0
    if not is_shaped:
        raise CheckpointError(f"the LoRA file's {key} has shape {tuple(tensor.shape)}; take another file")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"the LoRA file's {key} holds values that are not finite; take another file")
    return tensor

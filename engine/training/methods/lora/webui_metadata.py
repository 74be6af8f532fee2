"""The metadata of `lora_webui.safetensors`, as web interfaces and model managers read it.

There are two vocabularies: kohya's (`ss_…`; AUTOMATIC1111 sorts LoRAs by `ss_base_model_version` and `ss_v2`, and takes
any file that has metadata but neither of them for an SD 1.x one) and Stability AI's metadata specification
(`modelspec.…`, 1.0.0). The content does not depend on names, clocks or how the training was cut into tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from safetensors.torch import save as serialise_tensors

from engine.results import safetensors_file

DOWN_ENDING = ".lora_down.weight"
ALPHA_ENDING = ".alpha"


def describe(
    tensors: Mapping[str, torch.Tensor],
    base: Mapping[str, str],
    *,
    identity: str,
    resolution: int,
    global_step: int,
) -> dict[str, str]:
    """Return the metadata of a LoRA in kohya's format.

    Args:
        tensors: the file's tensors.
        base: the base model's part (`FamilySpec.webui_metadata`).
        identity: the base model's identity: `<Hub ID>@<commit>`, or `sha256:` and the digest of a folder or a file.
        resolution: the training's resolution in pixels.
        global_step: the number of steps trained.
    """
    name, _, _ = identity.partition("@")
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if key.endswith(DOWN_ENDING)}
    alphas = {float(tensor) for key, tensor in tensors.items() if key.endswith(ALPHA_ENDING)}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        **base,
        "modelspec.title": f"LoRA, {global_step} steps",
        "modelspec.resolution": f"{resolution}x{resolution}",
        "ss_network_module": "networks.lora",
        "ss_network_dim": _only(ranks),
        "ss_network_alpha": _only(alphas),
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_sd_model_name": name if not identity.startswith("sha256:") else identity.removeprefix("sha256:")[:12],
        "ss_steps": str(global_step),
    }


def serialise(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with metadata in sorted order; the library writes several keys in random order.

    It adds `sshs_model_hash`, by which web interfaces identify weights: the SHA-256 of all bytes after the header.
    """
    data: bytes = serialise_tensors(dict(tensors))
    tensors_header, body = safetensors_file.split(data)
    everything = {**metadata, "sshs_model_hash": hashlib.sha256(body).hexdigest()}
    header = {"__metadata__": dict(sorted(everything.items())), **tensors_header}
    return b"".join((safetensors_file.encode_header(header), body))


def _only(values: set[int] | set[float]) -> str:
    """Return the only value as text, or "Dynamic" as kohya's tools do if layers differ."""
    return f"{next(iter(values)):g}" if len(values) == 1 else "Dynamic"

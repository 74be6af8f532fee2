"""The base model: `model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engine.task.key import Chain, Named, about, key
from engine.task.keys.patterns import NO_NUL

Variant = Literal["fp16", "bf16"]
Quantization = Literal["int8", "fp8", "nf4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A component of the base model that comes from elsewhere."""

    name: str = field(
        metadata=about(
            "Name",
            "Where it comes from: a Hub ID, a local folder (its own, or that of a whole model), or one `.safetensors` "
            "file: its path or its http(s) URL.",
            minLength=1,
            pattern=NO_NUL,
        )
    )
    subfolder: str | None = key(
        None,
        "Sub-folder",
        "The folder in it; null takes the one with the component's name in a whole model, else the folder itself.",
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    variant: Variant | None = key(
        None, "Weight variant", "Which variant of the weight files is loaded; null loads the plain ones."
    )
    revision: str = key("main", "Revision", "A branch, tag or commit on the Hub.", empty_is_absent=True, pattern=NO_NUL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str = field(
        metadata=about(
            "Name",
            "The base model: a Hub ID, a local folder in Diffusers' layout, or "
            "[one `.safetensors` file](#a-base-model-in-one-file): its path or its http(s) URL.",
            chain=Chain.UNRECORDED,
            minLength=1,
            pattern=NO_NUL,
        )
    )
    variant: Variant | None = key(
        None,
        "Weight variant",
        "Which variant of the weight files is loaded; null loads the plain ones.",
        chain=Chain.UNRECORDED,
    )
    revision: str = key(
        "main",
        "Revision",
        "A branch, tag or commit on the Hub.",
        chain=Chain.UNRECORDED,
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    components: Mapping[str, Component] = key(
        Named,
        "Components from elsewhere",
        "[Parts of the base model that come from elsewhere](#a-vae-or-another-part-from-elsewhere), such as a VAE: the "
        "name of the part's folder in Diffusers' layout, and an object with its name and, if needed, subfolder, "
        "variant and revision.",
        chain=Chain.UNRECORDED,
    )
    quantization: Quantization | None = key(
        None,
        "Quantization",
        "How the frozen weights of the denoiser's blocks are kept [in less memory](#a-base-model-in-less-memory): in 8 "
        "bits (`int8`, `fp8`) or in 4 (`nf4`); null keeps them in the precision of `mixed_precision`. For a LoRA only.",
        chain=Chain.AGREED_IF_SET,
    )

"""The base model: `model`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from engine.task.key import Chain, about, key
from engine.task.keys.patterns import NO_NUL


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
    variant: Literal["fp16", "bf16"] | None = key(
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

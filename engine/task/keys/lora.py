"""The adapter that is trained, a LoRA or a LoKr: `lora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.task.key import Chain, key


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The LoRA. The method records what a chain must agree on: rank, targets, and the scale from alpha and rank."""

    rank: int = key(8, "Rank", "The dimension of the low-rank update.", chain=Chain.UNRECORDED, minimum=1)
    init_lora_weights: bool | Literal["gaussian", "loftq"] = key(
        True,
        "Initial weights",
        "The initial values of the matrices A and B: true A uniform (Kaiming), B zero; false both random; `gaussian` A "
        "normal, B zero; `loftq` LoftQ (arXiv:2310.08659), on the model quantised to 4 bits.",
        chain=Chain.UNRECORDED,
    )
    target_modules: tuple[str, ...] | str | None = key(
        None,
        "Target modules",
        "Names, or ends of names, of the modules that get a LoRA, or one regular expression that a whole name "
        "matches; null means `to_k`, `to_q`, `to_v`, `to_out.0`.",
        chain=Chain.UNRECORDED,
        minItems=1,
        items={"minLength": 1},
        minLength=1,
        format="regular-expression",
    )
    alpha: float | None = key(
        None,
        "Alpha",
        "The low-rank update is multiplied by alpha / rank; null takes the rank, which makes that 1.",
        chain=Chain.UNRECORDED,
        exclusiveMinimum=0,
        maximum=1e30,
    )
    dropout: float = key(
        0.0,
        "Dropout",
        "The share of a LoRA's inputs that is dropped in training, to the nearest of 65536 steps; 0 is off.",
        minimum=0,
        exclusiveMaximum=1,
    )
    use_rslora: bool = key(
        False,
        "Rank-stabilised LoRA",
        "Multiply the low-rank update by alpha / √rank instead of alpha / rank "
        "([rank-stabilised LoRA](https://arxiv.org/abs/2312.03732)).",
        chain=Chain.UNRECORDED,
    )
    factor: int | None = key(
        None,
        "Factor",
        "For the training type `lokr`: the size of the smaller Kronecker factor, as `factor` in LyCORIS. Where it does "
        "not divide a layer's size, the next smaller number that does takes its place. Null divides each size into the "
        "two numbers that are nearest to each other, as -1 in LyCORIS.",
        chain=Chain.UNRECORDED,
        minimum=2,
    )

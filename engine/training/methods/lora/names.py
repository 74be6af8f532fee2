"""What an adapter's tensors are called: here, and in the LoRA files of other trainers. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, Protocol

from engine.core.errors import CheckpointError
from engine.models.spec import FamilySpec

DOWN: Final = ".lora_A.weight"
UP: Final = ".lora_B.weight"


class Shaped(Protocol):
    """A tensor, or what a file's header says of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def tensor_names(module: str) -> tuple[str, str]:
    """The names of an adapted module's down and up matrices."""
    return f"{module}{DOWN}", f"{module}{UP}"


_SPELLINGS: Final = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_linear_layer.up.weight": "lora_B",
    "_lora.down.weight": "lora_A",
    "_lora.up.weight": "lora_B",
    "_lora.alpha": "alpha",
    ".alpha": "alpha",
}


_OTHER_KINDS: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"lora_magnitude_vector|\.dora_scale$",
            "is a DoRA, which is not offered (docs/task.md says why); take a LoRA that was trained without",
        ),
        (
            r"^lycoris_|\.(hada|lokr|oft|on_input|a1|b1)([_.]|$)",
            "is of LyCORIS (LoHa, LoKr, OFT, …), which is not offered; take a LoRA",
        ),
        (
            r"^lora_[a-z0-9]+_",
            "is in kohya's format (lora_…), which web interfaces load; it is not read here: "
            "take the same LoRA in Diffusers' format (lora_A, lora_B)",
        ),
        (r"^(emb_params|string_to_param|clip_[lg]$)", "is an embedding (textual inversion); take a LoRA"),
        (
            r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
            "is a whole model; model.name takes it, a checkpoint is a LoRA",
        ),
    )
)
"""What people take for a LoRA in Diffusers' format, by the names of its tensors; the surest sign first."""

_TRANSFORMER: Final = re.compile(r"^(?:base_model\.model\.)?(?:transformer|diffusion_model)\.")
"""The beginning of a name in a LoRA of a transformer."""
_WRAPPED: Final = re.compile(r"^(?:(?P<component>\w+)\.)?base_model\.model\.")
"""The beginning of a name in PEFT's own files: it wraps a model twice."""
_ADAPTER: Final = re.compile(r"(?<=\.lora_[AB])\.[^.]+(?=\.weight$)")
"""The adapter's name, which PEFT puts into the names of a model's own state: `lora_A.default.weight`."""


def places(keys: Collection[str], spec: FamilySpec, components: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return where a LoRA file's tensors belong: each key's module, by its full name, and its part (`parse_key`).

    Args:
        keys: the file's, in Diffusers' spellings or PEFT's.
        spec: of the model's family.
        components: what is trained.

    Raises:
        CheckpointError: no such file, or one that adapts more than the components. It names the first key in
            alphabetical order: parsers give them in any.
    """
    for pattern, words in _OTHER_KINDS:
        if any(map(pattern.search, keys)):
            raise CheckpointError(f"the LoRA file {words}")
    if not _TRANSFORMER.match(f"{spec.denoiser}.") and any(map(_TRANSFORMER.match, keys)):
        raise CheckpointError(
            "the LoRA file is of another kind of model (its layers are a transformer's); take one of this base "
            "model's kind"
        )
    plain = {key: _ADAPTER.sub("", _unwrapped(key, spec)) for key in sorted(keys)}
    is_prefixed = any(key.startswith(f"{component}.") for key in plain.values() for component in components)
    found: dict[str, tuple[str, str]] = {}
    known: dict[tuple[str, str], str] = {}
    for key, name in plain.items():
        component, own = own_key(name, components) if is_prefixed else (spec.denoiser, name)
        module, kind = parse_key(key, own)
        found[key] = place = (spec.lora_name(component, module), kind)
        if place in known:
            raise CheckpointError(
                f"the LoRA file has {known[place]} and {key}, which are for the same layer: it holds several "
                "adapters; save the one to start from alone"
            )
        known[place] = key
    return found


def _unwrapped(key: str, spec: FamilySpec) -> str:
    """A key of PEFT's as Diffusers spells it; others as they are."""
    found = _WRAPPED.match(key)
    if not found:
        return key
    own = key[found.end() :]
    component, _, _ = own.partition(".")
    if found["component"]:
        return f"{found['component']}.{own}"
    if component == spec.denoiser or component.startswith("text_encoder"):
        return own
    # One model's adapter alone: a text encoder's layers have this in front, a denoiser's have not.
    return f"{'text_encoder' if component == spec.text_root else spec.denoiser}.{own}"


def own_key(key: str, components: Collection[str]) -> tuple[str, str]:
    """The component that a key is about, and the rest of the key. Only the oldest files' have no such prefix.

    Raises CheckpointError for a component that is not trained.
    """
    component, _, own = key.partition(".")
    if component not in components:
        advice = "; set train_args.train_text_encoder" if component.startswith("text_encoder") else ""
        raise CheckpointError(f"the LoRA file also adapts {component}, which this task does not train{advice}")
    return component, own


def parse_key(key: str, own: str) -> tuple[str, str]:
    """The module that a key is about, and which of its parts: `lora_A`, `lora_B` or `alpha`. Raises CheckpointError."""
    own = own.replace(".processor.", ".")
    for ending, kind in _SPELLINGS.items():
        if own.endswith(ending):
            module = own.removesuffix(ending)
            # The oldest spelling, `to_out_lora`, leaves out that the projection is the first of a list.
            return (f"{module}.0" if module.endswith(".to_out") else module), kind
    raise CheckpointError(f"the LoRA file's {key} is not in Diffusers' format (lora_A, lora_B); take another file")


def require_fit(tensors: Mapping[str, Shaped], expected: Mapping[str, Shaped]) -> None:
    """Raise CheckpointError unless both have the same names and shapes; names the first that differs."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors:
            raise CheckpointError(f"the checkpoint's LoRA has no {name}, which {_chosen_by(name)} asks for")
        if name not in expected:
            raise CheckpointError(f"the checkpoint's LoRA has {name}, which {_chosen_by(name)} leaves out")
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found == wanted:
            continue
        axis = 0 if name.endswith(DOWN) else 1
        if len(found) == len(wanted) and found[:axis] + found[axis + 1 :] == wanted[:axis] + wanted[axis + 1 :]:
            raise CheckpointError(
                f"the checkpoint's LoRA has rank {found[axis]}, lora.rank is {wanted[axis]} (at {name})"
            )
        raise CheckpointError(f"the checkpoint's LoRA is of another model: {name} is {found}, here {wanted}")


def _chosen_by(name: str) -> str:
    return "train_args.train_text_encoder" if name.startswith("text_encoder") else "lora.target_modules"

"""Names of an adapter's tensors: in this program, and in the LoRA files of other trainers. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, Protocol

from engine.core.errors import CheckpointError, first_line
from engine.models.components.layer_names import is_foreign, text_encoder_of
from engine.models.spec import FamilySpec

DOWN: Final = ".lora_A.weight"
UP: Final = ".lora_B.weight"


class Shaped(Protocol):
    """A tensor, or the description of one in a file's header."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def tensor_names(module: str) -> tuple[str, str]:
    """Return the names of an adapted module's down and up matrices."""
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

_FOREIGN_SPELLINGS: Final = {
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".alpha": "alpha",
}
"""Endings of names in the files of kohya's tools and ComfyUI -> parts of a LoRA."""

_OTHER_KINDS: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"lora_magnitude_vector|\.dora_scale$",
            "is a DoRA, which is not supported (docs/task.md says why); use a LoRA that was trained without DoRA",
        ),
        (r"\.hada_", "is a LoHa of LyCORIS, which is not supported; use a LoRA"),
        (r"\.lokr_", "is a LoKr, which a LoRA cannot start from (docs/task.md says what can); use a LoRA"),
        (r"\.on_input$|\.ia3_", "is an (IA)³, which is not supported; use a LoRA"),
        (r"^lycoris_|\.(oft|a1|b1)([_.]|$)", "is of LyCORIS (OFT, GLoRA, …), which is not supported; use a LoRA"),
        (r"^(emb_params|string_to_param|clip_[lg]$)", "is an embedding (textual inversion); use a LoRA"),
        (
            r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
            "is a whole model: set it as model.name; checkpoint expects a LoRA",
        ),
    )
)
"""Other files that are mistaken for LoRAs in Diffusers' format, by their tensors' names; the surest sign first."""

_TRANSFORMER: Final = re.compile(r"^(?:base_model\.model\.)?transformer\.")
"""First part of names in a LoRA of a transformer."""
_WRAPPED: Final = re.compile(r"^(?:(?P<component>\w+)\.)?base_model\.model\.")
"""First part of names in PEFT's own files: PEFT wraps a model twice."""
_ADAPTER: Final = re.compile(r"(?<=\.lora_[AB])\.[^.]+(?=\.weight$)")
"""The adapter's name in names of a PEFT model's own state: `lora_A.default.weight`."""


def refuse_other_kinds(keys: Collection[str]) -> None:
    """Raise CheckpointError if a file with these tensors is something else that is mistaken for a LoRA."""
    for pattern, words in _OTHER_KINDS:
        if any(map(pattern.search, keys)):
            raise CheckpointError(f"the LoRA file {words}")


def places(
    keys: Collection[str], spec: FamilySpec, components: Collection[str], names: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Return the module, by its full name, and the part (`parse_key`) of each of a LoRA file's tensors.

    Args:
        keys: the tensors' names, as Diffusers, PEFT, kohya's tools or ComfyUI spell them.
        spec: the base model's family.
        components: the trained components.
        names: the names of the base model's layers in other programs (`layer_names.names_of`).

    Raises:
        CheckpointError: the file is not a LoRA in these formats, or adapts other components as well. It names the first
            key in alphabetical order, since parsers return them in any order.
    """
    refuse_other_kinds(keys)
    if not _TRANSFORMER.match(f"{spec.denoiser}.") and any(map(_TRANSFORMER.match, keys)):
        raise CheckpointError(
            "the LoRA file is for another kind of model (its layers are a transformer's); use one for this base model"
        )
    plain = {key: _ADAPTER.sub("", _unwrapped(key, spec)) for key in sorted(keys)}
    is_prefixed = any(key.startswith(f"{component}.") for key in plain.values() for component in components)
    found: dict[str, tuple[str, str]] = {}
    known: dict[tuple[str, str], str] = {}
    for key, name in plain.items():
        if is_foreign(name):
            place = _parse_foreign_key(name, spec, components, names)
        else:
            component, own = own_key(name, components) if is_prefixed else (spec.denoiser, name)
            module, kind = parse_key(key, own)
            place = (spec.lora_name(component, module), kind)
        found[key] = place
        if place in known:
            raise CheckpointError(
                f"the LoRA file has {known[place]} and {key}, which are for the same layer: it contains several "
                "adapters; save only the one to start from"
            )
        known[place] = key
    return found


def _unwrapped(key: str, spec: FamilySpec) -> str:
    """Return PEFT's key as Diffusers spells it; other keys unchanged."""
    found = _WRAPPED.match(key)
    if not found:
        return key
    own = key[found.end() :]
    component, _, _ = own.partition(".")
    if found["component"]:
        return f"{found['component']}.{own}"
    if component == spec.denoiser or component.startswith("text_encoder"):
        return own
    # The adapter of a single model: a text encoder's layers have the prefix `text_root`, a denoiser's do not.
    return f"{'text_encoder' if component == spec.text_root else spec.denoiser}.{own}"


def own_key(key: str, components: Collection[str]) -> tuple[str, str]:
    """Return the component of a key, and the rest of the key.

    Raises:
        CheckpointError: the component is not trained.
    """
    component, _, own = key.partition(".")
    if component not in components:
        advice = "; set train_args.train_text_encoder" if component.startswith("text_encoder") else ""
        raise CheckpointError(f"the LoRA file also adapts {component}, which this task does not train{advice}")
    return component, own


def parse_key(key: str, own: str) -> tuple[str, str]:
    """Return the module of a key, and its part: `lora_A`, `lora_B` or `alpha`. Raises CheckpointError."""
    own = own.replace(".processor.", ".")
    for ending, kind in _SPELLINGS.items():
        if own.endswith(ending):
            module = own.removesuffix(ending)
            # The oldest spelling, `to_out_lora`, omits that the projection is the first item of a list.
            return (f"{module}.0" if module.endswith(".to_out") else module), kind
    raise CheckpointError(f"the LoRA file's {key} is not in a format that is read (docs/chains.md); use another file")


def _parse_foreign_key(
    key: str, spec: FamilySpec, components: Collection[str], names: Mapping[str, str]
) -> tuple[str, str]:
    """Return the layer of a key, by its full name, and its part: `lora_A`, `lora_B` or `alpha`.

    Args:
        key: a tensor's name in one of these formats, without an adapter's name.
        spec: the base model's family.
        components: the trained components.
        names: those of `names_of`.

    Raises:
        CheckpointError: it is of a component that is not trained, or of no layer of the base model.
    """
    stem, kind = next(
        ((key.removesuffix(ending), kind) for ending, kind in _FOREIGN_SPELLINGS.items() if key.endswith(ending)),
        (key, ""),
    )
    if ".lora_mid." in key:
        raise CheckpointError("the LoRA file has three matrices a layer (Tucker decomposition): use another file")
    if not kind:
        raise CheckpointError(f"the LoRA file's {key} is no matrix or alpha of a LoRA; use another file")
    if stem in names:
        return names[stem], kind
    component = text_encoder_of(stem)
    if component and component not in components:
        advice = "; set train_args.train_text_encoder" if component in spec.text_encoders else ""
        raise CheckpointError(f"the LoRA file also adapts {component}, which this task does not train{advice}")
    raise CheckpointError(
        f"the LoRA file's {stem} is none of the base model's layers: it is for another kind of model, or its names are "
        "not those of Diffusers, kohya's tools or ComfyUI; use one for this base model"
    )


def require_fit(tensors: Mapping[str, Shaped], expected: Mapping[str, Shaped]) -> None:
    """Raise CheckpointError unless both have the same names and shapes; it names the first difference."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors:
            raise CheckpointError(f"the checkpoint's LoRA has no {name}, which {_chosen_by(name)} requires")
        if name not in expected:
            raise CheckpointError(f"the checkpoint's LoRA has {name}, which {_chosen_by(name)} excludes")
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found == wanted:
            continue
        axis = 0 if name.endswith(DOWN) else 1
        if len(found) == len(wanted) and found[:axis] + found[axis + 1 :] == wanted[:axis] + wanted[axis + 1 :]:
            raise CheckpointError(
                f"the checkpoint's LoRA has rank {found[axis]}, but lora.rank is {wanted[axis]} (at {name})"
            )
        raise CheckpointError(f"the checkpoint's LoRA is for another model: {name} is {found}, here it is {wanted}")


def require_room(tensors: Mapping[str, Shaped], expected: Mapping[str, Shaped]) -> None:
    """Check that a LoRA, whose layers may have any ranks, fits an adapter of the task's rank.

    Raises:
        CheckpointError: the matrices of a layer do not go together, a rank is too large, or `require_fit` would raise
            it for matrices of the adapter's rank.
    """
    ranks: dict[str, int] = {}
    for name, tensor in sorted(tensors.items()):
        module, axis = (name.removesuffix(UP), 1) if name.endswith(UP) else (name.removesuffix(DOWN), 0)
        if ranks.setdefault(module, tensor.shape[axis]) != tensor.shape[axis]:
            raise CheckpointError(f"the checkpoint's LoRA has matrices of two ranks for {module}; use another file")
    most = max((expected[name].shape[0] for name in expected if name.endswith(DOWN)), default=0)
    if (rank := max(ranks.values(), default=0)) > most:
        where = max(ranks, key=lambda module: ranks[module])
        raise CheckpointError(
            f"the checkpoint's LoRA has rank {rank}, but lora.rank is {most} (at {where}): set it to {rank} or more"
        )
    require_fit({name: _Widened(name, tensor, most) for name, tensor in tensors.items()}, expected)


class _Widened:
    """The shape of a LoRA's matrix at a higher rank."""

    def __init__(self, name: str, tensor: Shaped, rank: int) -> None:
        axis = 1 if name.endswith(UP) else 0
        self.shape = (*tensor.shape[:axis], rank, *tensor.shape[axis + 1 :])


def _chosen_by(name: str) -> str:
    return "train_args.train_text_encoder" if name.startswith("text_encoder") else "lora.target_modules"


def not_safetensors(error: Exception) -> CheckpointError:
    """Return the error about a LoRA file that the safetensors library cannot read."""
    return CheckpointError(f"the LoRA file is not a safetensors file ({first_line(error)!r}); use another file")

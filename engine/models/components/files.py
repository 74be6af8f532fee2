"""Select the files of a base model in Diffusers' layout, and hash them. No torch."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Final

from engine.core.canonical_json import canonical_json
from engine.core.errors import ModelError
from engine.core.files.file_hashes import FileDigests
from engine.core.messages import listing
from engine.models.configs import refuse_large
from engine.models.spec import FamilySpec

INDEX: Final = "model_index.json"
WEIGHT_STEMS: Final = ("diffusion_pytorch_model", "model")
"""The names of weights without their endings: Diffusers' and transformers'."""
_SIDE_FILES: Final = ("*.json", "*.txt", "*.model", "*.jinja")
_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
PICKLE_SUFFIXES: Final = (".bin", ".ckpt", ".pt", ".pth")
PICKLED: Final = "is a pickle, which can run code; convert it to safetensors (docs/task.md says how)"
_PICKLES: Final = tuple(f"*{suffix}" for suffix in PICKLE_SUFFIXES)


def files_below(folder: Path) -> list[str]:
    """Return all files below a folder, as sorted paths relative to it."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def files_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder, without those in its sub-folders, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def is_url(name: str) -> bool:
    """Return whether a model's name is the http(s) URL of a file."""
    return name.lower().startswith(("http://", "https://"))


def side_files(names: Iterable[str]) -> list[str]:
    """Return those of a component's files that are configurations, vocabularies and the like."""
    return [name for name in names if _matches(name, _SIDE_FILES)]


def is_part(entry: Any) -> bool:
    """Return whether an entry of model_index.json names a component: [library, class], not [null, null]."""
    return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None


def absent_components(index: Mapping[str, Any], family: FamilySpec) -> frozenset[str]:
    """Return the optional components that a model's model_index.json does not name."""
    return frozenset(name for name in family.optional if not is_part(index.get(name)))


def require_pairs(absent: Set[str]) -> None:
    """Raise ModelError if a model has a text encoder without its tokenizer, or a tokenizer without its text encoder."""
    for name in sorted(absent):
        own, other = ("tokenizer", "text_encoder") if name.startswith("tokenizer") else ("text_encoder", "tokenizer")
        partner = name.replace(own, other)
        if partner not in absent and name.startswith(own):
            raise ModelError(
                f"the base model has a {partner}, but no {name} that belongs to it: name one under "
                f"model.components.{name}, or leave both out"
            )


def select_files(
    names: Iterable[str],
    family: FamilySpec,
    variant: str | None,
    source: str,
    *,
    index: Mapping[str, Any],
    replaced: Set[str] = frozenset(),
) -> tuple[list[str], dict[str, str | None]]:
    """Return the files of a Diffusers folder that training needs, and each weighted component's variant.

    A component without weights of this variant falls back to its plain weights, as in Diffusers.

    Args:
        names: the folder's files.
        family: the model's family.
        variant: the variant of the weights.
        source: the model's name in messages.
        index: its model_index.json.
        replaced: the components that come from elsewhere. Only their configurations are selected, where there are any.

    Raises:
        ModelError: a component is missing, of another class, or has no complete safetensors weights, or no component
            has the variant.
    """
    names = sorted(names)
    selected = [INDEX]
    variants: dict[str, str | None] = {}
    absent = absent_components(index, family)
    for component in (name for name in family.components if name not in absent):
        inside = [name for name in names if Path(name).parent.as_posix() == component]
        selected += side_files(inside)
        if component in replaced:
            continue
        if not inside:
            raise ModelError(f"the base model {source} is incomplete: it has no folder {component}/")
        entry = index.get(component)
        if entry is not None and is_part(entry):
            require_class(entry[1], family.classes.get(component, ()), component, source)
        if component in family.weighted:
            weights, variants[component] = select_weights(inside, variant, source, component)
            selected += weights
    if variant and variants and variant not in variants.values():
        raise ModelError(f"the base model {source} has no {variant} weights: leave model.variant out")
    return selected, variants


def require_class(found: Any, known: Collection[str], component: str, source: str) -> None:
    """Raise ModelError if a component is of another class than those known; any class is, if none is known."""
    if known and found not in known:
        raise ModelError(
            f"the base model {source} has a {str(found)[:80]} as its {component}, expected {' or '.join(known)}: "
            "it is another kind of model"
        )


def select_weights(
    inside: Iterable[str], variant: str | None, source: str, component: str
) -> tuple[list[str], str | None]:
    """Return the files with a component's weights, and the variant in their names: the wanted one, or none.

    Args:
        inside: the files in the component's folder.
        variant: the wanted variant.
        source: the model's name in messages.
        component: the component's name in messages.

    Raises:
        ModelError: there are no safetensors weights, or some shards of them are missing.
    """
    inside = list(inside)
    for candidate in dict.fromkeys((variant, None)):
        if weights := [name for name in inside if is_weight(name, candidate)]:
            _require_all_shards(weights, inside, source)
            return weights, candidate
    raise ModelError(_no_weights(source, component, inside))


def _require_all_shards(weights: list[str], inside: list[str], source: str) -> None:
    """Raise ModelError if weights are in shards alone, and some of them, or their index, are missing."""
    shards = [match for name in weights if (match := _SHARD.fullmatch(name))]
    if not shards or len(shards) < len(weights):
        return
    stem, total = shards[-1]["stem"], shards[-1]["total"]
    numbers = {int(shard["number"]) for shard in shards if (shard["stem"], shard["total"]) == (stem, total)}
    if missing := sorted(set(range(1, int(total) + 1)) - numbers):
        names = [f"{stem}-{number:05d}-of-{total}.safetensors" for number in missing]
        raise ModelError(f"the base model {source} is incomplete: missing are {listing(names)}: download it again")
    if not any(".safetensors.index" in name for name in inside):
        raise ModelError(
            f"the base model {source} is incomplete: the shards {stem}-… have no index "
            f"({stem.partition('.')[0]}.safetensors.index.json): download it again"
        )


def is_weight(name: str, variant: str | None) -> bool:
    """Return whether a file holds weights of a component in a variant, in one file or as a shard."""
    middle = f".{variant}" if variant else ""
    file = Path(name).name
    return any(
        file == f"{stem}{middle}.safetensors" or fnmatch.fnmatchcase(file, f"{stem}{middle}-?????-of-?????.safetensors")
        for stem in WEIGHT_STEMS
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _no_weights(source: str, component: str, inside: list[str]) -> str:
    if any(_matches(name, _PICKLES) for name in inside):
        return (
            f"the base model {source} has only pickled weights in {component}/, which can run code; "
            "convert it to safetensors (Diffusers: pipe.save_pretrained(folder, safe_serialization=True))"
        )
    variants = sorted(name for name in inside if name.endswith(".safetensors"))
    found = f"; it has {', '.join(variants)}: set model.variant to the variant in that name" if variants else ""
    return f"the base model {source} has no safetensors weights in {component}/{found}"


def content_identity(folder: Path, names: list[str], digests: FileDigests) -> str:
    """Return `sha256:` and a digest of these files' names and bytes. Raises ModelError if one cannot be read."""
    digests.begin(folder / name for name in names if _is_large(name))
    try:
        found = {name: digests.of(folder / name) if _is_large(name) else _small(folder / name) for name in names}
    except OSError as error:
        raise ModelError(f"the base model's file {error.filename} cannot be read ({error.strerror})") from None
    return "sha256:" + hashlib.sha256(canonical_json(found)).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _small(path: Path) -> str:
    refuse_large(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""Select the files of a base model in Diffusers' layout, and hash them. No torch."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from engine.core.canonical_json import canonical_json
from engine.core.errors import ModelError
from engine.core.files.file_hashes import FileDigests
from engine.models.configs import refuse_large
from engine.models.spec import FamilySpec

INDEX: Final = "model_index.json"
_WEIGHT_STEMS: Final = ("diffusion_pytorch_model", "model")
_SIDE_FILES: Final = ("*.json", "*.txt", "*.model")
PICKLE_SUFFIXES: Final = (".bin", ".ckpt", ".pt", ".pth")
_PICKLES: Final = tuple(f"*{suffix}" for suffix in PICKLE_SUFFIXES)


def files_below(folder: Path) -> list[str]:
    """Return all files below a folder, as sorted paths relative to it."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def select_files(
    names: Iterable[str], family: FamilySpec, variant: str | None, source: str
) -> tuple[list[str], dict[str, str | None]]:
    """Return the files of a Diffusers folder that training needs, and each weighted component's variant.

    A component without weights of this variant falls back to its plain weights, as in Diffusers.

    Raises:
        ModelError: a component is missing or has no safetensors weights, or no component has the variant.
    """
    names = sorted(names)
    selected = [INDEX]
    variants: dict[str, str | None] = {}
    for component in family.components:
        inside = [name for name in names if Path(name).parent.as_posix() == component]
        selected += [name for name in inside if _matches(name, _SIDE_FILES)]
        if not inside:
            raise ModelError(f"the base model {source} is incomplete: it has no folder {component}/")
        if component not in family.weighted:
            continue
        for candidate in dict.fromkeys((variant, None)):
            weights = [name for name in inside if is_weight(name, candidate)]
            if weights:
                selected += weights
                variants[component] = candidate
                break
        else:
            raise ModelError(_no_weights(source, component, inside))
    if variant and variant not in variants.values():
        raise ModelError(f"the base model {source} has no {variant} weights: leave model.variant out")
    return selected, variants


def is_weight(name: str, variant: str | None) -> bool:
    """Return whether a file holds weights of a component in a variant, in one file or as a shard."""
    middle = f".{variant}" if variant else ""
    file = Path(name).name
    return any(
        file == f"{stem}{middle}.safetensors" or fnmatch.fnmatchcase(file, f"{stem}{middle}-?????-of-?????.safetensors")
        for stem in _WEIGHT_STEMS
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

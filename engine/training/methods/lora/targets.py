"""Find the layers that get an adapter. No torch until there are modules."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from engine.core import patterns
from engine.core.errors import TaskError
from engine.core.messages import as_json

if TYPE_CHECKING:
    import torch

NO_QUANTISED_START: Final = (
    "a LoRA file applies to the original weights, but lora.init_lora_weights 'loftq' trains on quantised weights; "
    "start without the file, or with init_lora_weights true"
)

_MAX_LISTED: Final = 40

logger = logging.getLogger(__name__)


def require_decomposable(layers: Mapping[str, tuple[int, ...]], rank: int) -> None:
    """Raise TaskError if a linear layer's rank is too low for LoftQ. `layers` maps names to weights' shapes."""
    for name, shape in layers.items():
        if rank > min(shape):
            raise TaskError(
                f"lora.rank: {rank} is more than the rank of {name} ({' x '.join(map(str, shape))}), "
                "which lora.init_lora_weights 'loftq' decomposes"
            )


def find_targets(root: torch.nn.Module, targets: tuple[str, ...] | str) -> dict[str, torch.nn.Module]:
    """Return the layers that `lora.target_modules` matches, by name, sorted.

    Raises:
        TaskError: as `match_targets`.
    """
    from torch.nn import Conv2d, Linear

    modules = {name: module for name, module in root.named_modules() if name}
    kinds = {
        name: None if isinstance(module, Linear | Conv2d) else f"of type {type(module).__name__}"
        for name, module in modules.items()
    }
    return {name: modules[name] for name in match_targets(kinds, targets)}


def match_targets(kinds: Mapping[str, str | None], targets: tuple[str, ...] | str) -> list[str]:
    """Return the names of the layers that `lora.target_modules` matches, sorted.

    As in PEFT, a list holds whole names or ends of names after a dot, and a string is a regular expression for the
    whole name.

    Args:
        kinds: for each module's name None if it can be adapted, else words for what it is.
        targets: as returned by `FamilySpec.targets_of`.

    Raises:
        TaskError: a malformed expression, no match, or a match that is neither linear nor a 2-D convolution.
    """
    matched = [*filter(_matcher(targets), kinds)] if isinstance(targets, str) else _match_ends(targets, kinds)
    if not matched:
        raise TaskError(
            f"lora.target_modules: {as_json(targets)} matches no layer; the layers are {_layer_names(kinds)}"
        )
    for name in matched:
        if kinds[name] is not None:
            inside = _layer_names({other: kinds[other] for other in kinds if other.startswith(f"{name}.")})
            raise TaskError(
                f"lora.target_modules: {name} is {kinds[name]}, but only Linear and Conv2d layers "
                f"can be adapted" + (f"; use those in it: {inside}" if inside else "")
            )
    return sorted(matched)


def is_target(targets: tuple[str, ...] | str) -> Callable[[str], bool]:
    """Return a predicate for names that `lora.target_modules` matches. Raises the errors of `match_targets`."""
    if isinstance(targets, str):
        return _matcher(targets)
    return lambda name: not _ends_of(name).isdisjoint(targets)


def _matcher(expression: str) -> Callable[[str], bool]:
    """Return a predicate for names that a regular expression matches as a whole."""
    pattern = patterns.compiled(expression)
    if isinstance(pattern, str):
        raise TaskError(f"lora.target_modules: {as_json(expression)} {pattern}")
    matches = patterns.Matcher(pattern)

    def is_matched(name: str) -> bool:
        try:
            return matches(name)
        except patterns.TakesTooLongError:
            raise TaskError(
                f"lora.target_modules: {as_json(expression)} takes more than {patterns.SECONDS:g} s to match "
                "against the layers' names; avoid nested repetition, or list the names"
            ) from None

    return is_matched


def _ends_of(name: str) -> set[str]:
    """Return all ends of a dotted name, including the whole name."""
    parts = name.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


def _match_ends(ends: tuple[str, ...], names: Iterable[str]) -> list[str]:
    found: dict[str, list[str]] = {end: [] for end in ends}
    for name in names:
        for end in _ends_of(name) & found.keys():
            found[end].append(name)
    matched = {name for matches in found.values() for name in matches}
    without = [end for end, matches in found.items() if not matches]
    for end in without[:_MAX_LISTED] if matched else ():
        # Lists are shared between models, so this is not an error.
        logger.warning("lora.target_modules: %r matches no layer of this model", end)
    return sorted(matched)


def _layer_names(kinds: Mapping[str, str | None]) -> str:
    """Return the distinct ends of adaptable layers' names, from the last part with a non-digit: `to_q`, `to_out.0`."""
    ends = set()
    for name, kind in kinds.items():
        if kind is None and (end := re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", name)):
            ends.add(end.group())
    listed = sorted(ends)
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return ", ".join(listed[:_MAX_LISTED]) + more

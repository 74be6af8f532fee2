"""Which layers get an adapter, and what they are called in LoRA files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Final

import torch

from .errors import TaskError
from .families.base import DENOISER
from .task import DEFAULT_TARGETS

TEXT_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The four projections of each attention, as CLIP calls them."""

_MAX_LISTED: Final = 40
_ADAPTABLE: Final = (torch.nn.Linear, torch.nn.Conv2d)

logger = logging.getLogger(__name__)


def full_name(component: str, module: str) -> str:
    """What Diffusers' LoRA files call a module of a component."""
    # transformers 5 dropped `text_model.` from the names in one of its two CLIP classes; the files have it, and
    # readers with either version take it.
    if component != DENOISER and module.startswith("encoder.layers."):
        module = f"text_model.{module}"
    return f"{component}.{module}"


def find_targets(denoiser: torch.nn.Module, targets: tuple[str, ...] | str | None) -> dict[str, torch.nn.Module]:
    """The layers that `lora.target_modules` means, by name, sorted.

    As in PEFT: a list holds whole names or ends of names at a dot, a string is a regular expression for the whole name.

    Raises:
        TaskError: a malformed expression, nothing matched, or a match that is neither linear nor a 2-D convolution.
    """
    modules = {name: module for name, module in denoiser.named_modules() if name}
    if isinstance(targets, str):
        matched = _match_expression(targets, modules)
    else:
        matched = _match_ends(DEFAULT_TARGETS if targets is None else targets, modules)
    if not matched:
        shown = "null" if targets is None else repr(targets if isinstance(targets, str) else list(targets))
        raise TaskError(f"lora.target_modules: {shown} matches no layer; there are {_layer_names(modules)}")
    for name in matched:
        if not isinstance(modules[name], _ADAPTABLE):
            inside = _layer_names({other: modules[other] for other in modules if other.startswith(f"{name}.")})
            raise TaskError(
                f"lora.target_modules: {name} is of type {type(modules[name]).__name__}, only Linear and Conv2d layers "
                f"can be adapted" + (f"; name those in it: {inside}" if inside else "")
            )
    return {name: modules[name] for name in sorted(matched)}


def _match_expression(expression: str, names: Iterable[str]) -> list[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise TaskError(f"lora.target_modules: {expression!r} is not a regular expression: {error}") from None
    return [name for name in names if pattern.fullmatch(name)]


def _match_ends(ends: tuple[str, ...], names: Iterable[str]) -> list[str]:
    found = {end: [name for name in names if name == end or name.endswith(f".{end}")] for end in ends}
    matched = {name for matches in found.values() for name in matches}
    for end in (end for end, matches in found.items() if matched and not matches):
        # Lists are shared between models, so this is no error: CLIP's q_proj means nothing to a UNet.
        logger.warning("lora.target_modules: %r matches no layer of this model", end)
    return sorted(matched)


def _layer_names(modules: Mapping[str, torch.nn.Module]) -> str:
    """The distinct ends of the adaptable layers' names, from the last part that is not a number: `to_q`, `to_out.0`."""
    ends = set()
    for name, module in modules.items():
        if isinstance(module, _ADAPTABLE) and (end := re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", name)):
            ends.add(end.group())
    listed = sorted(ends)
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return ", ".join(listed[:_MAX_LISTED]) + more

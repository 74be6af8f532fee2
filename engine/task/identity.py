"""Derive a task's canonical form and the values that checkpoints record, from the `Chain` of each key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from engine.task.key import Chain, about_field, is_set


def canonical(value: Any) -> dict[str, Any]:
    """Return the keys that identify a task, or one of its objects, as JSON.

    These are the keys that differ from their defaults, without those that do not change the result. So a key that is
    added to the format later does not change the canonical form of older tasks.
    """
    found: dict[str, Any] = {}
    for part in fields(value):
        item = getattr(value, part.name)
        if about_field(part).chain is Chain.NO_EFFECT:
            continue
        if is_dataclass(item):
            if inner := canonical(item):
                found[part.name] = inner
        elif is_set(value, part):
            found[part.name] = _json(item)
    return found


def recorded(value: Any) -> dict[str, Any]:
    """Return the keys of a task, or of one of its objects, that a checkpoint's settings record, as JSON."""
    return _chosen(value, Chain.RECORDED, Chain.RECORDED_IF_SET)


def agreed(task: Any) -> dict[str, Any]:
    """Return the keys on which all tasks of a chain must agree, as JSON: name without its object -> value."""
    found: dict[str, Any] = {}
    for name, item in _chosen(task, Chain.AGREED, Chain.AGREED_IF_SET).items():
        found |= item if isinstance(item, dict) else {name: item}
    return found


def _chosen(value: Any, always: Chain, if_set: Chain) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in fields(value):
        item, chain = getattr(value, part.name), about_field(part).chain
        is_chosen = always in chain or (if_set in chain and is_set(value, part))
        if chain is Chain.BY_ITS_KEYS:
            if inner := _chosen(item, always, if_set):
                found[part.name] = inner
        elif is_chosen:
            found[part.name] = _json(item)
    return found


def _json(item: Any) -> Any:
    if is_dataclass(item):
        return {part.name: _json(getattr(item, part.name)) for part in fields(item)}
    if isinstance(item, Mapping):
        return {name: canonical(one) for name, one in item.items()}
    if isinstance(item, tuple):
        return [canonical(one) if is_dataclass(one) else one for one in item]
    return item

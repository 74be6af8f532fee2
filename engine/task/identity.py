"""What identifies a task, and what a chain's checkpoints say of it: both follow from the `Chain` of each key."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from engine.task.key import Chain, about_field, is_set


def canonical(value: Any) -> dict[str, Any]:
    """Return the keys of a task, or of one of its objects, that make it this task, as JSON.

    These are the keys that differ from their default, without those that change no bit of the result. A key that is
    added to the format later changes no old task's canonical form.
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
    """Return what a checkpoint's settings record of a task or of one of its objects, as JSON."""
    return _chosen(value, Chain.RECORDED, Chain.RECORDED_IF_SET)


def agreed(task: Any) -> dict[str, Any]:
    """Return the keys that all tasks of a chain must agree on, as JSON: name without its object -> value."""
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
    return list(item) if isinstance(item, tuple) else item

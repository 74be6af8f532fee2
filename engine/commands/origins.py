"""Compare where a result and its re-run were made: does a difference mean that one of the two is wrong?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from engine.commands import result_diff
from engine.results.checkpoint import Checkpoint
from engine.results.history import StepReport

_PLACE: Final = ("device", "versions")


def same_until(told: Sequence[StepReport], rerun: Sequence[StepReport], end: int) -> int:
    """The last step before the first that differs; `end` where all are told the same."""
    known = {row.step: row for row in told}
    return next((row.step - 1 for row in rerun if known.get(row.step) != row), end)


def describe(
    result: Checkpoint, rerun: Checkpoint, *, start: int, same_until: int | None = None, is_other: bool = False
) -> list[str]:
    """Describe where both were made, and what follows from that.

    Args:
        result: the result.
        rerun: the re-run, made in one place.
        start: the step that the task began at.
        same_until: the step up to which both tell the same; None where they are identical.
        is_other: the result says that it is of another task.
    """
    here = {key: rerun.manifest.get(key) for key in _PLACE}
    found, as_here = [], start
    is_here = True
    for begin, end, place in _ranges(result, start):
        lines = list(result_diff.differing_keys({key: place.get(key) for key in _PLACE}, here))
        is_here = is_here and not lines
        as_here = end if is_here else as_here
        found += [f"another world: {_extent(begin, end, start, result)}{line}" for line in lines]
    if not found:
        device = json.dumps(here["device"], sort_keys=True)
        return [f"the same world by both manifests: {device}" + ("" if same_until is None else _accusation(is_other))]
    if same_until is None:
        return found
    if same_until < as_here:
        return [*found, f"steps {start + 1} to {as_here} were made in the same world" + _accusation(is_other)]
    advice = "bits may differ between worlds, and entrypoint.py compare says how far apart they are"
    if as_here > start:
        advice = f"up to step {as_here}, in the same world, both tell the same; after it {advice}"
    return [*found[:-1], f"{found[-1]}; {advice}"]


def _accusation(is_other: bool) -> str:
    return "; so it is of another task, or one of the two is wrong" if is_other else "; so one of the two is wrong"


def _ranges(result: Checkpoint, start: int) -> list[tuple[int, int, dict[str, Any]]]:
    """The steps of its task that a result says were made in one place, a stranger's word: the step before, the last."""
    found = result.manifest.get("origins")
    if not isinstance(found, list) or len(found) < 2 or not all(map(_is_range, found)):
        return [(start, result.global_step, result.manifest)]
    return [(one["from_step"], one["to_step"], one) for one in found]


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(key)) is int for key in ("from_step", "to_step"))


def _extent(begin: int, end: int, start: int, result: Checkpoint) -> str:
    """The steps of a range, where a result has several."""
    if (begin, end) == (start, result.global_step):
        return ""
    return f"steps {begin + 1} to {end}: " if end > begin else "the images: "

"""Compare the devices and library versions of a result and its re-run, which may explain a difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from engine.commands.diffs import result_diff
from engine.results.checkpoint import Checkpoint
from engine.results.history import StepReport

_PLACE: Final = ("device", "versions")


def same_until(told: Sequence[StepReport], rerun: Sequence[StepReport], end: int) -> int:
    """Return the last step before the first one that differs between the histories; `end` if none differs."""
    known = {row.step: row for row in told}
    return next((row.step - 1 for row in rerun if known.get(row.step) != row), end)


def describe(
    result: Checkpoint, rerun: Checkpoint, *, start: int, same_until: int | None = None, is_other: bool = False
) -> list[str]:
    """Describe the environments (device and library versions) of both, and what follows from them.

    Args:
        result: the result.
        rerun: the re-run, made in one environment.
        start: the step that the task began at.
        same_until: the step up to which the histories agree; None where result and re-run are identical.
        is_other: the result's own files say that it is of another task.
    """
    here = {key: rerun.manifest.get(key) for key in _PLACE}
    found, as_here = [], start
    is_here = True
    for begin, end, place in _ranges(result, start):
        lines = list(result_diff.differing_keys({key: place.get(key) for key in _PLACE}, here))
        is_here = is_here and not lines
        as_here = end if is_here else as_here
        found += [f"another environment: {_extent(begin, end, start, result)}{line}" for line in lines]
    if not found:
        device = json.dumps(here["device"], sort_keys=True)
        return [
            f"the same environment according to both manifests: {device}"
            + ("" if same_until is None else _accusation(is_other))
        ]
    if same_until is None:
        return found
    if same_until < as_here:
        return [*found, f"steps {start + 1} to {as_here} were made in the same environment" + _accusation(is_other)]
    advice = "bits may differ between environments; entrypoint.py compare says how far apart they are"
    if as_here > start:
        advice = f"up to step {as_here}, in the same environment, both agree; after it {advice}"
    return [*found[:-1], f"{found[-1]}; {advice}"]


def _accusation(is_other: bool) -> str:
    return "; so it is of another task, or one of the two is wrong" if is_other else "; so one of the two is wrong"


def _ranges(result: Checkpoint, start: int) -> list[tuple[int, int, dict[str, Any]]]:
    """Return the ranges of steps that were made in one environment by a result's manifest: (before, last, environment).

    The manifest is untrusted: malformed entries count as absent.
    """
    found = result.manifest.get("origins")
    if not isinstance(found, list) or len(found) < 2 or not all(map(_is_range, found)):
        return [(start, result.global_step, result.manifest)]
    return [(one["from_step"], one["to_step"], one) for one in found]


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(key)) is int for key in ("from_step", "to_step"))


def _extent(begin: int, end: int, start: int, result: Checkpoint) -> str:
    """Return words for a range of steps; empty if it is all of the result's."""
    if (begin, end) == (start, result.global_step):
        return ""
    return f"steps {begin + 1} to {end}: " if end > begin else "the images: "

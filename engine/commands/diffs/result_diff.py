"""Find the first difference between two results: the step, then the file and the tensor."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from engine.commands.diffs.tensor_diff import first_tensor
from engine.core.messages import plural, short
from engine.results.checkpoint import HISTORY, MANIFEST, STATE_JSON, is_state_file, spelled
from engine.results.history import StepReport

_ORDER: Final = (".safetensors", HISTORY, STATE_JSON)
"""Files, or a file name's ending, in the order in which they are compared, the most informative first: before them the
state's tensors, after them images by name, the manifest last."""
_CHUNK_BYTES: Final = 1 << 20
ORIGIN: Final = ("device", "versions", "origins")
"""Keys of the device and versions with which a result was made. They are not compared."""
_ABSENT: Final = object()


def first_step(result: Sequence[StepReport], rerun: Sequence[StepReport]) -> str | None:
    """Describe the first of the re-run's steps that is missing or differs in the result; None if there is none."""
    told = {row.step: row for row in result}
    for row in rerun:
        other = told.get(row.step)
        if other is None:
            return f"step {row.step} is missing from the result's history"
        if other != row:
            return f"step {row.step}: {_columns(other, row)}"
    return None


def _columns(result: StepReport, rerun: StepReport) -> str:
    names = {
        "loss": "loss",
        "grad_norm": "gradient norm",
        "learning_rate": "learning rate",
        "weights": "digest of the weights",
    }
    pairs = [(name, getattr(result, key), getattr(rerun, key)) for key, name in names.items()]
    return "; ".join(f"{name} {one!r} in the result, {two!r} in the re-run" for name, one, two in pairs if one != two)


def first_file(result: Mapping[str, Path | None], rerun: Mapping[str, Path]) -> str | None:
    """Describe the first of the re-run's files that differs in the result, and where in it; None if all are equal.

    Args:
        result: the result's files by the same names; None for a missing one.
        rerun: the files that the result should have; `manifest.json` and `state.json` count without `ORIGIN`.

    Raises:
        OSError: one of them cannot be read.
    """
    for name in sorted(rerun, key=lambda name: (_rank(name), name)):
        found, expected = result.get(name), rerun[name]
        if found is None:
            return f"{name} is missing from the result"
        if not _are_equal(found, expected):
            where = _where(name.rpartition("/")[2], found, expected)
            if where is not None:
                return f"{name}: {where}"
    return None


def _are_equal(one: Path, other: Path) -> bool:
    """Return whether two files have the same bytes; they may be large."""
    if one.stat().st_size != other.stat().st_size:
        return False
    return all(left == right for left, right in zip_longest(_chunks(one), _chunks(other)))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def first_more(result: Collection[str], rerun: Collection[str]) -> str | None:
    """Describe the first of the result's files that the re-run did not make; None if there is none."""
    more = sorted(set(result) - set(rerun))
    return f"{short(more[0])} is only in the result" if more else None


def _rank(name: str) -> int:
    base = name.rpartition("/")[2]
    if base == MANIFEST:
        return len(_ORDER) + 1
    if is_state_file(base):
        return -1
    return next((rank for rank, ending in enumerate(_ORDER) if base.endswith(ending)), len(_ORDER))


def _where(name: str, found: Path, expected: Path) -> str | None:
    if name.endswith(".safetensors"):
        return first_tensor(found, expected)
    if name in (MANIFEST, STATE_JSON):
        return _key(name, found.read_bytes(), expected.read_bytes())
    sizes = [path.stat().st_size for path in (found, expected)]
    return f"the contents differ ({plural(sizes[0], 'byte')} in the result, {sizes[1]} in the re-run)"


def _key(name: str, found: bytes, expected: bytes) -> str | None:
    """Describe the first key that differs, without `ORIGIN` (in a manifest, and in the last entry of a lineage)."""
    ours, theirs = json.loads(expected), json.loads(found)
    if spelled(name, theirs) != found:
        return "the same values, serialized differently"
    for value in (ours, theirs):
        if name == MANIFEST:
            value.pop("digest")  # of the rest, checked on reading
            value["files"].pop(STATE_JSON)  # it contains `ORIGIN` too, and is compared separately
        for part in (value,) if name == MANIFEST else value["lineage"][-1:]:
            for key in ORIGIN:
                part.pop(key, None)
    return next(differing_keys(theirs, ours), None)


def differing_keys(result: Any, rerun: Any, prefix: str = "") -> Iterator[str]:
    """Yield a line for each dotted key whose value differs, or that only one of the two has."""
    if isinstance(result, dict) and isinstance(rerun, dict):
        for key in sorted(result.keys() | rerun.keys()):
            pair = result.get(key, _ABSENT), rerun.get(key, _ABSENT)
            yield from differing_keys(*pair, f"{prefix}.{key}" if prefix else key)
    elif isinstance(result, list) and isinstance(rerun, list) and len(result) == len(rerun):
        for index, (one, other) in enumerate(zip(result, rerun, strict=True)):
            yield from differing_keys(one, other, f"{prefix}[{index}]")
    elif result != rerun or type(result) is not type(rerun):
        yield f"{prefix} is {_said(result)} in the result, {_said(rerun)} in the re-run"


def _said(value: Any) -> str:
    return "absent" if value is _ABSENT else short(value)

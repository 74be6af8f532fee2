"""The identity of a job, compared before it takes an output folder. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.results.agreement import differing


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Which job a result or an unfinished progress belongs to: what was asked for, and what was found for it."""

    task_digest: str
    parent: str | None
    invariants: Mapping[str, Any] | None = None
    """What its bytes depend on besides (`Job.invariants`); None where that is not known."""
    curve: str | None = None
    """Identity of its held-out losses (`Job.curve`)."""
    rows: int | None = None
    """Number of its dataset's rows, for messages."""
    max_steps: int = 0
    """The step at which the whole training ends; 0 where that is not known."""

    def described(self) -> dict[str, Any]:
        """Return it as JSON, for `record.json` and the saved progress; `of_record` is the inverse."""
        described = asdict(self)
        described["world"] = described.pop("invariants")  # the key's name of the first versions
        return described

    def is_of_task(self, other: JobRecord | None) -> bool:
        """Whether both are of one task and one checkpoint to continue."""
        return other is not None and (self.task_digest, self.parent) == (other.task_digest, other.parent)

    def changed_since(self, other: JobRecord) -> list[str]:
        """What a job of this task would train otherwise than `other` did, in lines for a person."""
        if self.invariants is None or other.invariants is None:
            return []
        lines = differing(other.invariants, self.invariants, there="then", here="now", rows=(other.rows, self.rows))
        if self.curve != other.curve:
            lines.append("the held-out images or captions have changed since")
        return lines

    def is_same(self, other: JobRecord | None) -> bool:
        """Whether both are one job, which would give the same bytes on the same device."""
        return other is not None and self.is_of_task(other) and not self.changed_since(other)

    @classmethod
    def of_record(cls, value: Any) -> JobRecord | None:
        """Return what the `record.json` of an unfinished job says; an earlier version's has no invariants."""
        return _read(value, object_at(value).get("world"), object_at(value).get("curve"), object_at(value).get("rows"))

    @classmethod
    def of_result(cls, manifest: Any, state: Any) -> JobRecord | None:
        """What the two JSON files of a published checkpoint say, which nobody has verified."""
        curve = object_at(state, "settings", "validation").get("dataset")
        return _read(manifest, object_at(state).get("world"), curve, object_at(manifest, "dataset").get("rows"))


def object_at(value: Any, *keys: str) -> dict[str, Any]:
    """The object at these keys of a JSON value; empty where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _read(value: Any, invariants: Any, curve: Any, rows: Any) -> JobRecord | None:
    """What a record or a manifest says, and what lies elsewhere with it."""
    if not isinstance(value, dict) or not isinstance(value.get("task_digest"), str):
        return None
    parent = value.get("parent")
    return JobRecord(
        value["task_digest"],
        parent if isinstance(parent, str) else None,
        invariants=invariants if isinstance(invariants, dict) else None,
        curve=curve if isinstance(curve, str) else None,
        rows=rows if type(rows) is int else None,
    )

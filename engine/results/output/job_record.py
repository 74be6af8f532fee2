"""The identity of a job, which is compared before it uses an output folder. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.results.agreement import differing


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The identity of the job that a result or saved progress belongs to: its task, its parent, and its invariants."""

    task_digest: str
    parent: str | None
    invariants: Mapping[str, Any] | None = None
    """Everything else that the result's bytes depend on (`Job.invariants`); None if that is not known."""
    curve: str | None = None
    """The curve of its held-out losses (`Job.curve`)."""
    rows: int | None = None
    """Number of rows of its dataset, for messages."""
    max_steps: int = 0
    """The step at which the whole training ends; 0 if that is not known."""

    def described(self) -> dict[str, Any]:
        """Return it as a JSON value, for `record.json` and the saved progress; `of_record` is the inverse."""
        described = asdict(self)
        described["world"] = described.pop("invariants")  # the key's name of the first versions
        return described

    def is_of_task(self, other: JobRecord | None) -> bool:
        """Return whether both have the same task and the same parent."""
        return other is not None and (self.task_digest, self.parent) == (other.task_digest, other.parent)

    def changed_since(self, other: JobRecord) -> list[str]:
        """Return lines for a person on what has changed since `other`; empty if that is not known."""
        if self.invariants is None or other.invariants is None:
            return []
        lines = differing(other.invariants, self.invariants, there="then", here="now", rows=(other.rows, self.rows))
        if self.curve != other.curve:
            lines.append("the held-out images or captions have changed since")
        return lines

    def is_same(self, other: JobRecord | None) -> bool:
        """Return whether both are the same job, which gives the same bytes on the same device."""
        return other is not None and self.is_of_task(other) and not self.changed_since(other)

    @classmethod
    def of_record(cls, value: Any) -> JobRecord | None:
        """Parse the `record.json` of an unfinished job; None if it is malformed. Old versions wrote no invariants."""
        return _read(value, object_at(value).get("world"), object_at(value).get("curve"), object_at(value).get("rows"))

    @classmethod
    def of_result(cls, manifest: Any, state: Any) -> JobRecord | None:
        """Parse the two JSON files of a published checkpoint, which are not verified; None if they are malformed."""
        curve = object_at(state, "settings", "validation").get("dataset")
        return _read(manifest, object_at(state).get("world"), curve, object_at(manifest, "dataset").get("rows"))


def object_at(value: Any, *keys: str) -> dict[str, Any]:
    """Return the object at these keys of a JSON value; empty if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _read(value: Any, invariants: Any, curve: Any, rows: Any) -> JobRecord | None:
    """Return the job of a record or a manifest, with the values that are stored elsewhere."""
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

"""The description of a task's key: its texts, its rules and its role in a chain.

A key is a field of a dataclass in `engine/task/keys/` or of `engine.task.task.Task`. The schema, the tables in
docs/task.md, the task's digest and the values that a checkpoint records are derived from the arguments of `key` and
`about`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, Final, TypedDict, TypeVar, Unpack, cast

_Value = TypeVar("_Value")


class Chain(enum.Flag):
    """The role of a key in a chain of tasks.

    A key that is newer than the first checkpoints is agreed on or recorded only if it is set, that is, if it differs
    from its default. So a checkpoint that is older than the key continues with a task that leaves it out.
    """

    AGREED = enum.auto()
    """All tasks of a chain must have the same value, which is one of the chain's invariants."""
    AGREED_IF_SET = enum.auto()
    RECORDED = enum.auto()
    """The checkpoint's settings record the value. If it is not agreed on, it may change from task to task."""
    RECORDED_IF_SET = enum.auto()
    UNRECORDED = enum.auto()
    """The checkpoint does not record the value: it concerns this task only, or the job records its result (the
    dataset's fingerprint instead of its name)."""
    NO_EFFECT = enum.auto()
    """The value does not change the result: tasks that differ only in this key are the same task."""
    BY_ITS_KEYS = enum.auto()
    """An object whose keys have roles of their own. Any other object is recorded as a whole."""


class Named(dict[str, _Value]):
    """An object whose keys are names, such as those of a base model's folders. It must not be changed."""

    def __hash__(self) -> int:  # type: ignore[override]  # a task is hashable
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


class Rules(TypedDict, total=False):
    """Keywords of JSON Schema (draft-07, Validation, section 6) that narrow a key's values."""

    minimum: float
    exclusiveMinimum: float
    maximum: float
    exclusiveMaximum: float
    multipleOf: int
    minLength: int
    maxLength: int
    pattern: str
    format: str
    minItems: int
    maxItems: int
    items: Mapping[str, Any]
    """The keywords for an array's items."""


class Options(Rules, total=False):
    """The keyword arguments of `key` and `about`: the keywords of `Rules`, and the attributes of `About`."""

    chain: Chain
    required: bool
    empty_is_absent: bool
    training_only: bool
    needs: str
    yields_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The description of one key."""

    title: str
    """The label for a form."""
    text: str
    """Its effect, in one or more sentences of Markdown: names in backticks, links relative to docs/task.md."""
    rules: Mapping[str, Any]
    """The keywords of `Rules`."""
    chain: Chain = Chain.RECORDED_IF_SET
    required: bool = False
    """True if a task must have the key although it has a default."""
    empty_is_absent: bool = False
    """True if an empty string means the default; clients that fill in a template leave such keys empty."""
    training_only: bool = False
    """True if it changes images or captions for the training but not for the held-out loss."""
    needs: str | None = None
    """The key of the same object without which this one has no effect."""
    yields_to: str | None = None
    """The key of the same object that takes precedence over this one."""


_METADATA: Final = "about"


def about(title: str, text: str, **options: Unpack[Options]) -> dict[str, About]:
    """Return the metadata of a dataclass's field without a default: `name: str = field(metadata=about(…))`."""
    given = cast(dict[str, Any], options)
    rules = {name: given.pop(name) for name in list(given) if name in Rules.__annotations__}
    return {_METADATA: About(title=title, text=text, rules=rules, **given)}


def key(default: object, title: str, text: str, **options: Unpack[Options]) -> Any:
    """Return the dataclass field of a key. A class as `default` means an object of this class with its defaults."""
    metadata = about(title, text, **options)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def about_field(part: Field[Any]) -> About:
    """Return the description of a field that was made by `key` or `about`."""
    return cast(About, part.metadata[_METADATA])


def default_of(part: Field[Any]) -> Any:
    """Return a field's default, `MISSING` if it has none."""
    return part.default if part.default_factory is MISSING else part.default_factory()


def is_set(value: Any, part: Field[Any]) -> bool:
    """Return whether a key's value in an object differs from its default."""
    return bool(getattr(value, part.name) != default_of(part))

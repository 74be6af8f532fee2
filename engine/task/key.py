"""What is known of a task's key beside its name, type and default.

A key is a field of a dataclass in `engine/task/keys/` or of `engine.task.task.Task`. The schema, the tables in
docs/task.md, the task's digest and what a checkpoint records all follow from what `key` and `about` are given.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, Final, TypedDict, Unpack, cast


class Chain(enum.Flag):
    """What a key means to a chain of tasks.

    A key that is newer than the first checkpoints is agreed on or recorded only where it is set, that is, where it
    differs from its default. So a checkpoint from before it continues with a task that leaves it out.
    """

    AGREED = enum.auto()
    """All tasks of a chain have the same value, which is one of the chain's invariants."""
    AGREED_IF_SET = enum.auto()
    RECORDED = enum.auto()
    """The checkpoint's settings record it. What is recorded and not agreed on may change from task to task."""
    RECORDED_IF_SET = enum.auto()
    UNRECORDED = enum.auto()
    """It says what this task alone does, or the job records what it leads to: of the dataset the fingerprint, not the
    name."""
    NO_EFFECT = enum.auto()
    """It changes no bit of the result: tasks that differ in it alone are the same task."""
    BY_ITS_KEYS = enum.auto()
    """An object whose keys are looked at one by one. Any other object is recorded whole."""


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
    """Of an array's items: such keywords again."""


class Options(Rules, total=False):
    """What `key` and `about` take beside the texts: the keywords of `Rules`, and the attributes of `About`."""

    chain: Chain
    required: bool
    empty_is_absent: bool
    training_only: bool
    needs: str
    yields_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """One key's texts, rules and meaning."""

    title: str
    """What a form would call it."""
    text: str
    """What it does, in one or more sentences. Markdown: names in backticks, links as seen from docs/task.md."""
    rules: Mapping[str, Any]
    """Keywords of `Rules`."""
    chain: Chain = Chain.RECORDED_IF_SET
    required: bool = False
    """Whether a task has to have it although it has a default."""
    empty_is_absent: bool = False
    """Whether an empty string means the default; clients that fill in a template leave such keys empty."""
    training_only: bool = False
    """Whether it changes images or captions in training alone, and not where the held-out loss is measured."""
    needs: str | None = None
    """The key of the same object without which this one has no effect."""
    yields_to: str | None = None
    """The key of the same object beside which this one has no effect."""


_METADATA: Final = "about"


def about(title: str, text: str, **options: Unpack[Options]) -> dict[str, About]:
    """Return the metadata of a dataclass's field without a default: `name: str = field(metadata=about(…))`."""
    given = cast(dict[str, Any], options)
    rules = {name: given.pop(name) for name in list(given) if name in Rules.__annotations__}
    return {_METADATA: About(title=title, text=text, rules=rules, **given)}


def key(default: object, title: str, text: str, **options: Unpack[Options]) -> Any:
    """Return the dataclass field of a key. A class as `default` means an object of that class with its defaults."""
    metadata = about(title, text, **options)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def about_field(part: Field[Any]) -> About:
    """Return what is known of a field that `key` or `about` made."""
    return cast(About, part.metadata[_METADATA])


def default_of(part: Field[Any]) -> Any:
    """Return a field's default, `MISSING` where it has none."""
    return part.default if part.default_factory is MISSING else part.default_factory()


def is_set(value: Any, part: Field[Any]) -> bool:
    """Return whether a key of an object differs from its default."""
    return bool(getattr(value, part.name) != default_of(part))

"""Compare what two trainings depend on, and describe each difference with both values. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from engine.core.messages import short

# Names that messages use for keys that a task does not have.
_SAID: Final = {
    "ema": "whether train_args.ema_decay is set",
    "heldout_images": "the number of images that validation.dataset.fraction holds out",
    "micro_batches": "K, the number of processes times gradient_accumulation_steps,",
}
_HEX: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")
"""A commit or a SHA-256; messages show the first 12 digits."""


def differing(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    there: str,
    here: str,
    rows: tuple[int | None, int | None] = (None, None),
) -> list[str]:
    """Return a line with both values for each key that differs. An absent key is at its default.

    Args:
        found: the invariants of a checkpoint, a result or saved progress.
        expected: those of this task.
        there: words that say where `found` applies, such as "in the checkpoint".
        here: words that say where `expected` applies.
        rows: number of rows of the dataset in `found` and in `expected`; None where that is not known.
    """
    lines = []
    for key in dict.fromkeys((*expected, *found)):
        theirs, ours = found.get(key), expected.get(key)
        if theirs == ours:
            continue
        if key == "dataset":
            lines.append(f"images or captions have changed since{_counted(*rows)}")
        elif _are_files(theirs, ours):
            what = f"the files of the {key.replace('_', ' ')} have changed since"
            lines.append(f"{what} ({_short(theirs)} {there}, {_short(ours)} {here})")
        else:
            lines.append(f"{_SAID.get(key, key)} is {_short(theirs)} {there}, {_short(ours)} {here}")
    return lines


def _counted(then: int | None, now: int | None) -> str:
    if now is None:
        return ""
    return f" ({now:,} rows now)" if then is None else f" ({then:,} rows then, {now:,} now)"


def _are_files(*values: Any) -> bool:
    return all(isinstance(value, str) and value.startswith("sha256:") for value in values)


def _short(value: Any) -> str:
    return "at its default" if value is None else _HEX.sub(r"\1…", short(value))

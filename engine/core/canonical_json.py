"""The one form of a JSON value that digests are taken of."""

from __future__ import annotations

import json


def canonical_json(value: object) -> bytes:
    """Return a value as JSON in UTF-8 with sorted keys and without spaces.

    Raises:
        ValueError: a number that is not finite.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()

"""Values for the reader of JSON: any that JSON can write, and which of them a task may hold."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from tests.support.tasks import KEYS

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(""),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from([*KEYS]), inner, max_size=4)
    ),
    max_leaves=8,
)


def plain(value) -> bool:
    """Return whether the reader accepts a value: every number in it is finite."""
    if isinstance(value, dict):
        return all(plain(key) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)

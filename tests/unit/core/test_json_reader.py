"""The reader of JSON agrees with Python's, and reads no more than JSON."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import json_reader
from tests.support.json_values import json_values, plain


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_the_reader_reads_what_json_writes(value):
    text = json.dumps(value, ensure_ascii=False)
    read_value, found = json_reader.parse(text.encode())
    assert bool(found) == (not plain(value))
    if not found:
        assert json.dumps(read_value, ensure_ascii=False) == text


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_the_reader_accepts_no_more_than_json(data):
    text = json.dumps(data.draw(json_values), indent=data.draw(st.sampled_from([None, 1])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        inserted = data.draw(st.sampled_from(["", *',:"{}[]\\\n\t 01-.eE/#', "NaN", "null", "\xa0", "\ufeff", "'"]))
        text = text[:place] + inserted + text[place + data.draw(st.integers(0, 2)) :]
    value, found = json_reader.parse(text.encode())
    if not found:
        assert json.loads(text) == value
    elif any(re.match(r"line \d+, column \d+: ", problem.message) for problem in found) and "nested" not in str(found):
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)

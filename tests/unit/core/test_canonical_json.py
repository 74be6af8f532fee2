"""The one form of JSON that digests are taken of."""

import math

import pytest

from engine.core.canonical_json import canonical_json


def test_canonical_json_is_one_form():
    assert canonical_json({"b": 1.0, "a": ["é", None]}) == '{"a":["é",null],"b":1.0}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(math.nan)

"""Bounds that are read from the environment."""

import pytest

from engine.core.errors import TaskError
from engine.data.fetch import Limits


def test_limits_from_the_environment():
    assert Limits.from_environment({}) == Limits(max_dataset_bytes=50 << 30)
    assert Limits.from_environment({"MAX_DATASET_BYTES": "", "ALLOW_PRIVATE_URLS": ""}) == Limits()
    assert Limits.from_environment({"MAX_DATASET_BYTES": "7", "ALLOW_PRIVATE_URLS": "1"}) == Limits(
        max_dataset_bytes=7, allow_private_urls=True
    )
    for name, value in [("MAX_DATASET_BYTES", "50GB"), ("MAX_DATASET_BYTES", "0"), ("ALLOW_PRIVATE_URLS", "yes")]:
        with pytest.raises(TaskError, match=name):
            Limits.from_environment({name: value})

"""A tiny model of each family, loaded in float32."""

import pytest

from tests.support.tiny import BUILDERS
from tests.unit.models.families.test_every_family import load


@pytest.fixture(scope="module", params=list(BUILDERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return BUILDERS[name](tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def full(folder):
    return load(folder)

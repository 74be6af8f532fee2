"""Any input ends in a value or in the typed error of its kind, with one printable line: nothing else, ever.

The default run tries the same few inputs each time; the slow one tries many new ones (`FUZZ_EXAMPLES` of each target).
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings

from engine.core.errors import CheckpointError
from engine.models.families.sd.spec import SPEC
from engine.training.methods.lora.formats.files import read_diffusers_file
from tests.fuzz.tally import TRIED
from tests.fuzz.targets import TARGETS

FEW = 40
MANY = int(os.environ.get("FUZZ_EXAMPLES", "20000"))


def fuzz(name: str, **profile: object) -> None:
    target = TARGETS[name]

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **profile)
    @given(target.inputs)
    def check(data):
        try:
            target.run(data)
        except target.error as error:
            assert str(error).isprintable(), str(error)
            TRIED[name, "refused"] += 1
        else:
            TRIED[name, "taken"] += 1

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_a_few(name):
    fuzz(name, max_examples=FEW, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", TARGETS)
def test_many(name):
    fuzz(name, max_examples=MANY)


def test_a_shape_that_no_tensor_has():
    """Found by the long run: empty, so its bytes agree, and too large to be a size."""
    header = b'{"unet.a.lora_A.weight": {"dtype": "F32", "shape": [0, 9223372036854775808], "data_offsets": [0, 0]}}'
    with pytest.raises(CheckpointError):
        read_diffusers_file(len(header).to_bytes(8, "little") + header, SPEC, [SPEC.denoiser], names={})

"""Quantised and offloaded weights on a GPU: the codes of the CPU, and the bytes of a training without offloading."""

from __future__ import annotations

import pytest
import torch

from engine.models.quantization.formats import FORMATS
from tests.gpu.device import DEVICE
from tests.support.harness import assert_same, changed, succeed
from tests.support.tiny_flux import build_flux

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", FORMATS)
def test_codes_and_weights_have_the_bits_of_the_cpu(name):
    weight = torch.randn(96, 200, generator=torch.Generator().manual_seed(0))
    own = FORMATS[name]
    codes, scales = own.quantise(weight)
    found, found_scales = own.quantise(weight.to(DEVICE))
    assert torch.equal(found.cpu(), codes) and torch.equal(found_scales.cpu(), scales)
    shape = tuple(weight.shape)
    assert torch.equal(own.dequantise(found, found_scales, shape).cpu(), own.dequantise(codes, scales, shape))


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_offloaded_blocks_give_the_same_bytes(task, tmp_path, quantization):
    model = {"model.name": str(build_flux(tmp_path / "flux")), "model.quantization": quantization}
    steps = {"train_args.num_train_steps": 3, "train_args.max_train_steps": 3}
    own = changed(task, {**model, **steps, "mixed_precision": "bf16", "train_args.batch_size": 2})
    whole, offloaded = (
        succeed(changed(own, {"train_args.offload": offload}), tmp_path / f"{offload}", env={"DEVICE": DEVICE})
        for offload in (False, True)
    )
    assert_same(offloaded.folders(), whole.folders())

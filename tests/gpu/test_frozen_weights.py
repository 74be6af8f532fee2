"""Quantised and offloaded weights on a GPU: the codes of the CPU, and the bytes of a training without offloading.

Also the inputs of blocks, which wait in main memory with them.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from engine.models.components.block_inputs import BlockInputs
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


def test_offloaded_inputs_leave_two_of_them_on_the_device():
    """And the gradients have the same bits, in passes that follow each other. A CPU's memory is not measured."""
    depth, shape = 12, (1, 8192 if DEVICE == "cuda" else 8, 512)
    size = torch.Size(shape).numel() * 4
    blocks = [torch.nn.Linear(shape[-1], shape[-1], device=DEVICE) for _ in range(depth)]

    def passes(inputs):
        before, found = 0, []
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        for scale in (1.0, 2.0, 3.0):
            x = torch.linspace(-scale, scale, torch.Size(shape).numel(), device=DEVICE).view(shape)
            for block in blocks:
                compute = partial(checkpoint, block, x, use_reentrant=False, preserve_rng_state=False)
                x = inputs.offloaded(compute) if inputs else compute()
            loss = x.square().mean()
            del x
            weights = [block.weight for block in blocks]
            found += [gradient.cpu() for gradient in torch.autograd.grad(loss, weights)]
            del loss
        return found, torch.cuda.max_memory_allocated() - before if DEVICE == "cuda" else 0

    passes(None)  # libraries take their workspaces
    (expected, whole), (found, less) = passes(None), passes(BlockInputs(torch.device(DEVICE)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert whole - less > (depth - 4) * size or DEVICE != "cuda"

"""NF4 against its definition, and the decomposition against what LoftQ promises."""

import pytest
import torch

from engine.models.quantization.formats import NF4
from engine.training.methods.lora import loftq
from tests.support.tolerance import assert_equal_but_for_rounding


def weight(*shape, seed=0, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


class TestQuantise:
    @pytest.mark.parametrize("shape", [(32, 64), (5, 7), (3, 2, 3, 3), (64,), (1, 130)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_each_value_becomes_its_nearest_code(self, shape, dtype):
        original = weight(*shape, dtype=dtype)
        quantised = loftq.quantise(original)
        assert quantised.shape == original.shape and quantised.dtype == dtype
        codes = torch.tensor(NF4)
        for block, found in zip(original.flatten().split(64), quantised.flatten().split(64), strict=True):
            largest = block.float().abs().max()
            nearest = (block.float()[:, None] / largest - codes).abs().argmin(dim=1)
            assert torch.equal(found, (codes[nearest] * largest).to(dtype))

    def test_at_most_sixteen_values_a_block(self):
        for block in loftq.quantise(weight(16, 64)):
            assert len(block.unique()) <= 16

    def test_twice_is_once(self):
        once = loftq.quantise(weight(8, 64))
        assert torch.equal(loftq.quantise(once), once)

    def test_the_codes_are_symmetric_at_the_ends_and_know_zero(self):
        assert NF4[0] == -1 and NF4[-1] == 1 and 0 in NF4
        assert list(NF4) == sorted(NF4) and len(NF4) == 16

    def test_a_block_of_zeros_stays(self):
        mixed = torch.cat([torch.zeros(64), torch.ones(64)])
        assert torch.equal(loftq.quantise(mixed), mixed)

    def test_has_its_own_memory(self):
        original = weight(4, 64)
        kept = original.clone()
        loftq.quantise(original).zero_()
        assert torch.equal(original, kept)

    def test_the_usual_error_is_a_tenth(self):
        original = weight(256, 256)
        error = (loftq.quantise(original) - original).norm() / original.norm()
        assert 0.08 < error < 0.11  # of normal values, as in QLoRA


class TestInit:
    def test_is_the_best_of_its_rank(self):
        original = weight(48, 80)
        a, b, quantised = loftq.init(original, 6)
        assert a.shape == (6, 80) and b.shape == (48, 6)
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(quantised, loftq.quantise(original))
        residual = (original - quantised).double()
        lost = torch.linalg.svdvals(residual)[6:].norm()  # Eckart & Young
        assert (residual - b.double() @ a.double()).norm() == pytest.approx(lost.item(), rel=1e-5)

    def test_full_rank_makes_up_for_everything(self):
        original = weight(20, 64)
        a, b, quantised = loftq.init(original, 20)
        assert_equal_but_for_rounding(quantised + b @ a, original, operations=20)

    def test_signs_are_canonical(self):
        a, _, _ = loftq.init(weight(48, 80), 8)
        assert (a.gather(1, a.abs().argmax(dim=1, keepdim=True)) > 0).all()

    def test_repeats_itself(self):
        one, other = loftq.init(weight(48, 80), 4), loftq.init(weight(48, 80), 4)
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))

    def test_both_share_the_size(self):
        a, b, _ = loftq.init(weight(48, 80), 4)
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))

    def test_half_weights_are_quantised_in_their_own_dtype(self):
        original = weight(32, 64, dtype=torch.float16)
        a, b, quantised = loftq.init(original, 32)
        assert quantised.dtype == torch.float16
        assert_equal_but_for_rounding(quantised.float() + b @ a, original.float(), operations=32)


def test_requantising_repeats_the_replacement():
    first, second = torch.nn.Linear(64, 16), torch.nn.Linear(64, 16)
    second.load_state_dict(first.state_dict())
    starts = loftq.replace_weights({"x": first}, 4)
    loftq.requantise_weights({"x": second})
    assert torch.equal(first.weight, second.weight)
    assert starts.keys() == {"x"} and starts["x"][0].shape == (4, 64)
    assert first.weight.requires_grad

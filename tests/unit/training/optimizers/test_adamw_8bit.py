"""AdamW in 8 bits: the map and the blocks of the paper, its own formula in float64, and near AdamW."""

import pytest
import torch

from engine.core.errors import CheckpointError
from engine.results.state import OptimizerState
from engine.training.optimizers import adamw_8bit
from engine.training.optimizers.adamw_8bit import Codec, dynamic_map
from tests.support.fake_memory import LiveBytes
from tests.support.optimizer_runs import assert_near, doubles, gradients, make, parameters

LARGE = (61, 70)


class TestCodes:
    @pytest.mark.parametrize("signed, smallest", [(True, 5.5e-7), (False, 3.25e-7)])
    def test_the_map(self, signed, smallest):
        """256 values; each decade has twice as many as the one below."""
        values = dynamic_map(signed=signed)
        assert values == sorted(set(values)) and len(values) == 256 and {0.0, 1.0} < set(values)
        positive = [value for value in values if 0 < value < 1]
        assert positive[0] == pytest.approx(smallest)
        counts = [sum(10**k * 0.1 <= value < 10**k for value in positive) for k in range(-6, 1)]
        assert counts == [2**k * (1 if signed else 2) for k in range(7)]
        assert signed == ({-value for value in positive} < set(values)) and min(values) > -1

    @pytest.mark.parametrize("signed", [True, False])
    @pytest.mark.parametrize("count", [1, 256, 257, 1000])
    def test_each_value_becomes_the_nearest_one_of_its_block(self, signed, count):
        codec = Codec(torch.device("cpu"), signed=signed)
        exact = torch.randn(count, generator=torch.Generator().manual_seed(count)).pow(3)
        exact = exact if signed else exact.abs()
        codes, scales = torch.zeros(count, dtype=torch.uint8), torch.zeros(-(-count // 256))
        codec.encode(exact.clone(), codes, scales)
        found = codec.decode(codes, scales)
        values = torch.tensor(dynamic_map(signed=signed))
        for start in range(0, count, 256):
            own = exact[start : start + 256]
            scale = own.abs().max()
            assert scales[start // 256] == scale
            distance = (own[:, None] - scale * values[None, int(not signed) :]).abs().min(dim=1).values
            torch.testing.assert_close((found[start : start + 256] - own).abs(), distance, rtol=1e-3, atol=1e-6)

    def test_a_block_of_zeros_stays_zero(self):
        for signed in (True, False):
            codec = Codec(torch.device("cpu"), signed=signed)
            codes, scales = torch.full((300,), 7, dtype=torch.uint8), torch.ones(2)
            codec.encode(torch.zeros(300), codes, scales)
            assert not codec.decode(codes, scales).any() and not scales.any()

    def test_a_small_mean_square_does_not_become_zero(self):
        """Its root is what the next step is divided by."""
        codec = Codec(torch.device("cpu"), signed=False)
        codes, scales = torch.zeros(2, dtype=torch.uint8), torch.zeros(1)
        codec.encode(torch.tensor([1.0, 1e-12]), codes, scales)
        assert codec.decode(codes, scales).tolist() == pytest.approx([1.0, 3.25e-7])


def decoded(state, signed):
    """The moments of a state, in float64."""
    slot = "exp_avg" if signed else "exp_avg_sq"
    values = torch.tensor(dynamic_map(signed=signed), dtype=torch.float64)
    scales = state.slots[f"{slot}_scale"]["a"].double().repeat_interleave(256)
    return (values[state.slots[slot]["a"].long()].view(-1) * scales[: 61 * 70]).view(LARGE)


def test_an_update_is_adamws_with_the_decoded_moments():
    """And what it writes is at most half a step of the map away from the exact moments."""
    named = parameters(LARGE)
    ours = make("adamw_8bit", [named], weight_decay=0.1)
    for step in range(10):
        rate, number, before = 1e-3 * (step + 1), step + 1, doubles(named)["a"]
        mean, square = decoded(ours.state(), True), decoded(ours.state(), False)
        gradient = gradients(named, step)["a"]
        ours.update({"a": gradient}, [rate])
        mean = 0.9 * mean + 0.1 * gradient.double()
        square = 0.999 * square + 0.001 * gradient.double() ** 2
        root = (square / (1 - 0.999**number)).sqrt() + 1e-8
        exact = before * (1 - rate * 0.1) - rate * mean / (1 - 0.9**number) / root
        assert_near(named, {"a": exact}, rtol=1e-5, atol=1e-6)
        for signed, value in ((True, mean), (False, square)):
            assert (decoded(ours.state(), signed) - value).abs().max() < 0.01 * value.abs().max()


def test_it_is_near_adamw():
    one, other = parameters(LARGE), parameters(LARGE)
    ours, exact = make("adamw_8bit", [one]), make("adamw", [other])
    start = doubles(one)["a"]
    for step in range(50):
        own = {"a": gradients(one, step)["a"] + 0.5}
        ours.update(own, [1e-3])
        exact.update(own, [1e-3])
    moved = (doubles(other)["a"] - start).norm()
    assert (doubles(one)["a"] - doubles(other)["a"]).norm() < 0.05 * moved


def test_small_parameters_have_the_bits_of_adamw():
    one, other = parameters((4, 7), LARGE), parameters((4, 7), LARGE)
    ours, exact = make("adamw_8bit", [one]), make("adamw", [other])
    for step in range(5):
        ours.update(gradients(one, step), [1e-3])
        exact.update(gradients(other, step), [1e-3])
    assert torch.equal(one["a"], other["a"]) and not torch.equal(one["b"], other["b"])
    slots = ours.state().slots
    assert slots["exp_avg"]["a"].dtype == torch.float32 and slots["exp_avg"]["b"].dtype == torch.uint8


def test_chunks_have_the_bits_of_the_whole(monkeypatch):
    found = []
    for chunk in (adamw_8bit._CHUNK, 1024):
        monkeypatch.setattr(adamw_8bit, "_CHUNK", chunk)
        named = parameters(LARGE)
        ours = make("adamw_8bit", [named])
        for step in range(3):
            ours.update(gradients(named, step), [1e-2])
        found.append((named["a"].detach(), *(slot["a"] for slot in ours.state().slots.values())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_its_state_takes_a_quarter_of_adamws(monkeypatch):
    monkeypatch.setattr(adamw_8bit, "_CHUNK", 1024)
    named = {"a": torch.nn.Parameter(torch.zeros(1 << 18))}
    ours, own = make("adamw_8bit", [named], whole=True), {"a": torch.ones(1 << 18)}
    with LiveBytes([*named.values(), *own.values()]) as memory:
        ours.update(own, [1e-3])
    assert (2 << 18) < memory.now < 2.1 * (1 << 18) and memory.peak < memory.now + 64 * 1024


@pytest.mark.parametrize("slot", ["exp_avg_scale", "exp_avg_sq_scale"])
def test_a_negative_scale_is_refused(slot):
    ours = make("adamw_8bit", [parameters(LARGE)])
    state = ours.state()
    state.slots[slot]["a"][3] = -1.0
    with pytest.raises(CheckpointError, match=f"{slot} of a is negative"):
        ours.restore(OptimizerState(state.slots, 0))

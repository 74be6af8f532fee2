"""Addressed randomness: pure functions of (seed, stream, address)."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import rng

SEEDS = [0, 1, 2**63, 10**40]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_access_equals_sequential(seed):
    whole = rng.words(seed, "flip", 0, 64)
    assert whole.shape == (64, 4) and whole.dtype == np.uint64
    for start in (0, 1, 17, 63):
        assert np.array_equal(rng.words(seed, "flip", start, 64 - start), whole[start:])
    assert np.array_equal(np.concatenate([rng.words(seed, "flip", i, 1) for i in range(64)]), whole)


@given(start=st.integers(0, 2**63 - 100), cut=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_words_can_be_cut_anywhere(start, cut):
    pieces = [rng.words(3, "crop", start, cut), rng.words(3, "crop", start + cut, 40 - cut)]
    assert np.array_equal(np.concatenate(pieces), rng.words(3, "crop", start, 40))


def test_what_was_drawn_before_does_not_matter():
    first = rng.normal(5, "noise", 9, (4, 8, 8))
    rng.words(5, "noise", 0, 100)
    np.random.default_rng().random()
    assert np.array_equal(rng.normal(5, "noise", 9, (4, 8, 8)), first)
    assert np.array_equal(rng.normal(5, "noise", 9, (2, 8, 8)), first[:2]), "a longer draw begins like a shorter one"


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed, stream, address: rng.words(seed, stream, address, 4),
        lambda seed, stream, address: rng.normal(seed, stream, address, (64,)),
        lambda seed, stream, address: rng.uniform(seed, stream, address, (64,)),
        lambda seed, stream, address: rng.permutation(seed, stream, address, 64),
    ],
)
def test_seed_stream_and_address_all_matter(draw):
    addresses = [(seed, stream, n) for seed in SEEDS for stream in ("a", "b", "1|a") for n in (0, 1, 2**32, 2**62)]
    addresses += [(11, "a", 0), (1, "1|a", 0)]  # must not run into each other as text
    found = {hashlib.sha256(draw(*address).tobytes()).digest() for address in addresses}
    assert len(found) == len(set(addresses))


def test_addresses_beyond_64_bits_are_their_own():
    draws = [rng.normal(0, "lora init", address, (8,)).tobytes() for address in (1, 1 << 64, (1 << 64) + 1, 1 << 100)]
    assert len(set(draws)) == 4


def test_streams_are_uncorrelated():
    flips, crops = rng.words(0, "flip", 0, 20_000), rng.words(0, "crop", 0, 20_000)
    columns = np.concatenate([flips, crops], axis=1).astype(np.float64)
    off_diagonal = np.corrcoef(columns.T) - np.eye(8)
    assert np.abs(off_diagonal).max() < 0.035  # five standard errors


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 1000])
def test_below_is_uniform(bound):
    draws = rng.below(rng.words(1, "timestep", 0, 50_000)[:, 0], bound)
    assert draws.dtype == np.int64 and draws.min() == 0 and draws.max() == bound - 1
    counts, expected = np.bincount(draws, minlength=bound), 50_000 / bound
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square <= bound + 5 * (2 * bound) ** 0.5


@given(word=st.integers(0, 2**64 - 1), bound=st.integers(1, 2**31))
@settings(max_examples=200, deadline=None)
def test_below_is_exact_multiply_shift(word, bound):
    draw = int(rng.below(np.array([word], dtype=np.uint64), bound)[0])
    assert draw == (word >> 32) * bound >> 32
    assert 0 <= draw < bound


@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_permutation(length):
    order = rng.permutation(0, "permutation", 0, length)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(length))


def test_permutations_of_epochs_and_seeds_differ():
    orders = [tuple(rng.permutation(seed, "permutation", epoch, 50).tolist()) for seed in SEEDS for epoch in range(5)]
    assert len(set(orders)) == len(orders)


def test_every_permutation_of_three_is_equally_likely():
    orders = [tuple(rng.permutation(0, "permutation", epoch, 3).tolist()) for epoch in range(3000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert all(abs(count - 500) < 5 * (500 * 5 / 6) ** 0.5 for count in counts)


def test_normal_has_the_moments_of_a_normal():
    draws = rng.normal(0, "noise", 0, (400_000,)).astype(np.float64)
    assert draws.dtype == np.float64 and np.isfinite(draws).all()
    moments = [float((draws**k).mean()) for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.06)


def test_floats_are_float32_of_any_shape():
    for draw in (rng.normal, rng.uniform):
        for shape in ((), (3,), (4, 8, 8), (0, 2)):
            numbers = np.asarray(draw(0, "x", 0, shape))
            assert numbers.dtype == np.float32 and numbers.shape == shape
    uniform = rng.uniform(0, "x", 0, (10_000,))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert np.array_equal(uniform * 2**24, np.round(uniform * 2**24))


def test_a_torch_generator_leaves_the_global_one_alone():
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()
    one, other = (torch.randn(5, generator=rng.torch_generator(3)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, torch.randn(5, generator=rng.torch_generator(4)))
    assert torch.equal(torch.get_rng_state(), before)


class TestKnownAnswers:
    def test_this_numpy_passes(self):
        rng.check_known_answers()

    @pytest.mark.parametrize("name", ["words", "normal"])
    def test_a_changed_stream_is_refused(self, monkeypatch, name):
        real = getattr(rng, name)

        def changed(*arguments):
            numbers = real(*arguments).copy()
            numbers.flat[-1 if name == "normal" else 1] += 1
            return numbers

        monkeypatch.setattr(rng, name, changed)
        with pytest.raises(RuntimeError, match="draws other random numbers"):
            rng.check_known_answers()


class TestLanes:
    @pytest.mark.parametrize("shape", [(), (1,), (4,), (7,), (3, 5, 2)])
    def test_any_shape_is_the_beginning_of_the_same_numbers(self, shape):
        lanes = rng.lanes(3, "s", 9, shape)
        assert lanes.shape == shape and lanes.dtype == np.uint16
        assert np.array_equal(lanes.ravel(), rng.lanes(3, "s", 9, (64,))[: lanes.size])

    def test_they_are_the_quarters_of_the_words_lowest_first(self):
        words = rng._generator(3, "s", 9).bit_generator.random_raw(2)
        expected = [int(word) >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
        assert rng.lanes(3, "s", 9, (8,)).tolist() == expected

    def test_addresses_do_not_overlap(self):
        found = [rng.lanes(3, "s", address, (4096,)) for address in (0, 1, 2**64)]
        assert len({lanes.tobytes() for lanes in found}) == 3
        assert not set(found[0][:64].reshape(-1, 4).view(np.uint64).ravel()) & set(
            found[1].reshape(-1, 4).view(np.uint64).ravel()
        )

    def test_uniform(self):
        lanes = rng.lanes(0, "s", 0, (1 << 18,))
        counts = np.bincount(lanes >> 8, minlength=256)
        assert abs(counts / counts.mean() - 1).max() < 0.15

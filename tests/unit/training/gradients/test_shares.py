"""Parameters are divided among processes evenly, by a pure function, and every value is in one bucket."""

import pytest

from engine.training.gradients.shares import Shares, owners

SIZES = {"b": 50, "a": 50, "c": 7, "d": 120, "e": 1, "f": 30, "scalar": 1}


@pytest.mark.parametrize("world_size", [1, 2, 3, 10])
@pytest.mark.parametrize("bucket", [1, 7, 64, 10**6])
def test_each_value_is_in_one_bucket_of_its_owner(world_size, bucket):
    shares = Shares(SIZES, world_size, bucket)
    seen = {name: [] for name in SIZES}
    for one in shares.buckets():
        assert len(one) == world_size
        for rank, parts in enumerate(one):
            assert sum(part.length for part in parts) <= shares.bucket_length <= max(1, bucket // world_size)
            for part in parts:
                assert shares.owners[part.name] == rank and part.length > 0
                seen[part.name] += range(part.start, part.stop)
    assert seen == {name: list(range(size)) for name, size in SIZES.items()}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_no_process_has_more_than_the_mean_and_one_tensor(world_size):
    loads = [0] * world_size
    for name, rank in owners(SIZES, world_size).items():
        loads[rank] += SIZES[name]
    assert max(loads) <= sum(SIZES.values()) / world_size + max(SIZES.values())
    assert owners(dict(reversed(SIZES.items())), world_size) == owners(SIZES, world_size)


def test_several_tensors_have_the_same_size():
    assert owners({name: 4 for name in "hgfedcba"}, 2) == dict(zip("hgfedcba", [1, 0] * 4, strict=True))

"""Divide parameters among processes: each tensor has one owner, which keeps all that its update needs.

The optimizer's state is partitioned as in ZeRO stage 1 (Rajbhandari et al. 2020, arXiv:1910.02054), by whole tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

BUCKET_VALUES: Final = 16 << 20
"""Upper bound for the number of values that a process sends at once, 64 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A range of a flattened tensor's values."""

    name: str
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def owners(sizes: Mapping[str, int], world_size: int) -> dict[str, int]:
    """Return the rank of each tensor's owner, by name; a pure function of its arguments.

    The largest tensor left goes to the process that has the fewest values so far. So no process has more than the mean
    and one tensor.

    Args:
        sizes: the number of values of each tensor, by name.
        world_size: the number of processes.
    """
    loads, found = [0] * world_size, {}
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        found[name] = loads.index(min(loads))
        loads[found[name]] += size
    return {name: found[name] for name in sizes}


def owned_by(rank: int, sizes: Mapping[str, int], world_size: int) -> set[str]:
    """Return the names of the tensors that a process owns; arguments as in `owners`."""
    return {name for name, owner in owners(sizes, world_size).items() if owner == rank}


class Shares:
    """The values of each process's tensors, one tensor after the other, cut into slices that are exchanged together."""

    def __init__(self, sizes: Mapping[str, int], world_size: int, bucket_values: int = BUCKET_VALUES) -> None:
        self.owners = owners(sizes, world_size)
        self._sizes = sizes
        self._world_size = world_size
        totals = [0] * world_size
        for name, owner in self.owners.items():
            totals[owner] += sizes[name]
        self.bucket_length = min(max(totals), max(1, bucket_values // world_size))
        """Upper bound for the number of values of one owner in a bucket."""
        self._num_buckets = -(-max(totals) // self.bucket_length)

    def buckets(self) -> Iterator[list[list[Slice]]]:
        """Yield the slices of each owner, by rank, in each bucket. The order is the same in all processes."""
        shares = [self._slices(rank) for rank in range(self._world_size)]
        yield from ([next(share) for share in shares] for _ in range(self._num_buckets))

    def _slices(self, owner: int) -> Iterator[list[Slice]]:
        """Yield an owner's slices, `bucket_length` values at a time, then empty lists."""
        found: list[Slice] = []
        room = self.bucket_length
        for name in (name for name, rank in self.owners.items() if rank == owner):
            start, size = 0, self._sizes[name]
            while start < size:
                found.append(Slice(name, start, min(size, start + room)))
                start, room = found[-1].stop, room - found[-1].length
                if not room:
                    yield found
                    found, room = [], self.bucket_length
        yield found
        while True:
            yield []

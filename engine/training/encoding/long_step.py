"""An optimizer step with more visits than fit into memory: its examples are made a window at a time. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, overload

T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class LongStep(Sequence[T], Generic[T]):
    """This process's examples of one step, made for several rounds of micro-batches at a time.

    It must be read forwards: examples before the window in memory are dropped.
    """

    make: Callable[[int, int], list[T]]
    """Function of a first visit's number and a number of visits that returns this process's examples among them."""
    start: int
    """The number of the step's first visit."""
    size: int
    """Number of examples in a micro-batch. This process has one micro-batch per round."""
    round_visits: int
    """Number of visits in a round, over all processes."""
    num_rounds: int
    """Number of rounds in the step."""
    window: Callable[[], int]
    """Function that returns the number of rounds in memory at once."""
    check_stop: Callable[[], None]
    """Called with each micro-batch; raises when the job is to stop, which must not wait for the end of a long step."""
    _places: range = range(0)
    """The indices of the examples in memory."""
    _examples: list[T] = field(default_factory=list)

    def __len__(self) -> int:
        return self.num_rounds * self.size

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            self.check_stop()
            return [self[k] for k in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        if place not in self._places:
            self._fill(place // self.size)
        return self._examples[place - self._places.start]

    def _fill(self, first: int) -> None:
        """Make the window that begins with the round `first`."""
        stop = min(first + self.window(), self.num_rounds)
        self._examples = []  # frees the previous window first
        self._examples = self.make(self.start + first * self.round_visits, (stop - first) * self.round_visits)
        self._places = range(first * self.size, stop * self.size)

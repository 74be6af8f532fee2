"""An optimizer step of more visits than are kept in memory: its examples are made a window at a time. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, overload

T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class LongStep(Sequence[T], Generic[T]):
    """This process's examples of one step, made some rounds of micro-batches at a time.

    To be read forwards: what lies before the window in memory is forgotten.
    """

    make: Callable[[int, int], list[T]]
    """Gives this process's examples among so many visits from a number on."""
    start: int
    """The number of the step's first visit."""
    size: int
    """Examples of a micro-batch, of which this process has one a round."""
    round_visits: int
    """Visits of a round, those of all processes."""
    num_rounds: int
    """Rounds of the step."""
    window: int
    """Rounds in memory at once."""
    check_stop: Callable[[], None]
    """Called with each micro-batch; raises when the job is to stop, which may not wait for the end of a long step."""
    _places: range = range(0)
    """The places of the examples in memory."""
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
        """Make the window that begins with the round number `first`."""
        stop = min(first + self.window, self.num_rounds)
        self._examples = []  # the window before need not be in memory meanwhile
        self._examples = self.make(self.start + first * self.round_visits, (stop - first) * self.round_visits)
        self._places = range(first * self.size, stop * self.size)

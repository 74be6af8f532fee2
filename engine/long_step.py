"""An optimizer step of more visits than are kept in memory: its examples are made a window at a time. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class LongStep(Sequence[T], Generic[T]):
    """This process's examples of one step, made some rounds of micro-batches at a time.

    To be read forwards: what lies before the window in memory is forgotten.
    """

    def __init__(
        self,
        make: Callable[[int, int], list[T]],
        *,
        start: int,
        size: int,
        round_visits: int,
        num_rounds: int,
        window: int,
        check_stop: Callable[[], None],
    ) -> None:
        """
        Args:
            make: gives this process's examples among so many visits from a number on.
            start: the number of the step's first visit.
            size: examples of a micro-batch, of which this process has one a round.
            round_visits: visits of a round, those of all processes.
            num_rounds: of the step.
            window: rounds in memory at once.
            check_stop: called with each micro-batch; raises when the job is to stop, which may not wait for the end of
                a step that takes days.
        """
        self._make = make
        self._start = start
        self._size = size
        self._round_visits = round_visits
        self._num_rounds = num_rounds
        self._window = window
        self._check_stop = check_stop
        self._places = range(0)
        """The places of the examples in memory."""
        self._examples: list[T] = []

    def __len__(self) -> int:
        return self._num_rounds * self._size

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            self._check_stop()
            return [self[k] for k in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        if place not in self._places:
            self._fill(place // self._size)
        return self._examples[place - self._places.start]

    def _fill(self, first: int) -> None:
        """Make the window that begins with the round number `first`."""
        stop = min(first + self._window, self._num_rounds)
        self._examples = []  # the window before need not be in memory meanwhile
        self._examples = self._make(self._start + first * self._round_visits, (stop - first) * self._round_visits)
        self._places = range(first * self._size, stop * self._size)

"""Fetch members of remote shards before they are asked for, by several threads, into bounded memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from engine.core.errors import JobError

CONNECTIONS: Final = 16
MAX_BYTES: Final = 256 << 20
_CHECK_SECONDS: Final = 0.5


class Place(NamedTuple):
    """The place of a member."""

    shard: int
    """The number of its shard, from 0."""
    offset: int
    size: int


Fetch = Callable[[Sequence[Place]], Sequence[bytes]]
"""Return the bytes of members of one shard."""


@dataclass(slots=True)
class _Wanted:
    """A member that will be asked for."""

    uses: int
    is_started: bool = False
    is_done: bool = False
    data: bytes | None = None
    """None if fetching failed."""
    error: JobError | None = None


class ReadAhead:
    """The members of one window of visits, fetched in the order in which they were announced.

    Its threads are daemons: they never delay the end of a process. A member is kept until it was taken as often as it
    was announced, or until the next window.
    """

    def __init__(
        self,
        fetch: Fetch,
        is_whole: Callable[[int], bool],
        *,
        max_bytes: int = MAX_BYTES,
        connections: int = CONNECTIONS,
    ) -> None:
        """
        Args:
            fetch: called by several threads at once.
            is_whole: returns whether the server of a shard sends whole files only, so that all members of the shard
                are to be fetched together.
            max_bytes: the most bytes that are kept or being fetched by the threads.
            connections: the number of threads.
        """
        self._fetch = fetch
        self._is_whole = is_whole
        self._max_bytes = max_bytes
        self._connections = connections
        self._wanted: dict[Place, _Wanted] = {}
        self._queue: dict[Place, None] = {}
        self._bytes = 0
        self._num_threads = 0
        self._changed = threading.Condition()
        self._check_stop: Callable[[], None] = lambda: None

    def clear(self, check_stop: Callable[[], None]) -> None:
        """Forget what was announced; call `check_stop`, which may raise, while a member is waited for from now on."""
        self._check_stop = check_stop
        with self._changed:
            # What is being fetched counts until it is there.
            self._bytes -= sum(place.size for place, one in self._wanted.items() if one.is_done)
            self._wanted, self._queue = {}, {}
            self._changed.notify_all()

    def announce(self, places: Iterable[Place]) -> None:
        """Note members that will be asked for, in this order; one that is named twice will be asked for twice."""
        with self._changed:
            for place, uses in Counter(places).items():
                if place in self._wanted:
                    self._wanted[place].uses += uses
                else:
                    self._wanted[place] = _Wanted(uses)
                    self._queue[place] = None

    def start(self) -> None:
        """Begin to fetch what was announced, if that is not under way."""
        if not self._queue:
            return
        with self._changed:
            for _ in range(min(self._connections - self._num_threads, len(self._queue))):
                self._num_threads += 1
                threading.Thread(target=self._work, daemon=True).start()

    def take(self, place: Place) -> bytes:
        """Return a member's bytes; one that is not being fetched yet is fetched now. Raises as `fetch`."""
        self.start()
        with self._changed:
            if place not in self._wanted:
                self._wanted[place] = _Wanted(1)
            wanted = self._wanted[place]
            group = self._begin(place) if not wanted.is_started else []
        if group:  # a thread of its own, since a server may take minutes, and signals are for this one
            threading.Thread(target=self._run, args=(group,), daemon=True).start()
        self._wait(wanted)
        with self._changed:
            wanted.uses -= 1
            if wanted.uses <= 0 and self._wanted.get(place) is wanted:
                del self._wanted[place]
                self._bytes -= place.size
                self._changed.notify_all()
        if wanted.error is not None:
            raise wanted.error
        # Where a thread failed by a mistake in the program, that is raised here too.
        return self._fetch([place])[0] if wanted.data is None else wanted.data

    def _wait(self, wanted: _Wanted) -> None:
        """Wait for a member that is being fetched. Raises what `check_stop` raises."""
        while True:
            with self._changed:
                if wanted.is_done or self._changed.wait_for(lambda: wanted.is_done, _CHECK_SECONDS):
                    return
            self._check_stop()

    def _work(self) -> None:
        """Fetch until nothing is left; wait while the memory is full."""
        while True:
            with self._changed:
                place = next(iter(self._queue), None)
                while place is not None and not self._has_room(place):
                    self._changed.wait()
                    place = next(iter(self._queue), None)
                if place is None:
                    self._num_threads -= 1
                    return
                group = self._begin(place)
            self._run(group)

    def _has_room(self, place: Place) -> bool:
        """Return whether a thread may begin to fetch a member. The lock must be held."""
        if not self._bytes:
            return True
        if self._is_whole(place.shard):  # much at once, since the shard comes again for what did not fit
            return self._bytes <= self._max_bytes // 2
        return self._bytes + place.size <= self._max_bytes

    def _begin(self, place: Place) -> list[tuple[Place, _Wanted]]:
        """Take a member from the queue; of a shard that comes as a whole, also all that will be asked for soon.

        These are among the next members of all shards that fit into the memory. The lock must be held.
        """
        chosen, room = [place], self._max_bytes - self._bytes - place.size
        if self._is_whole(place.shard):
            for other in self._queue:
                room -= other.size if other != place else 0
                if room < 0:
                    break
                if other != place and other.shard == place.shard:
                    chosen.append(other)
        for one in chosen:
            self._queue.pop(one, None)
            self._wanted[one].is_started = True
            self._bytes += one.size
        return [(one, self._wanted[one]) for one in chosen]

    def _run(self, group: Sequence[tuple[Place, _Wanted]]) -> None:
        """Fetch members that were begun, and hand them or the error to those who wait."""
        found: Sequence[bytes | None] = [None] * len(group)
        error: JobError | None = None
        try:
            found = self._fetch([place for place, _ in group])
        except JobError as raised:  # raised again where the member is asked for
            error = raised
        finally:
            with self._changed:
                for (place, wanted), data in zip(group, found, strict=True):
                    wanted.data, wanted.error, wanted.is_done = data, error, True
                    if self._wanted.get(place) is not wanted:  # of a window that is over
                        self._bytes -= place.size
                self._changed.notify_all()

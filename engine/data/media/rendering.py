"""Decode samples to pixels, in this process or in workers that live no longer than it does."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, TypeVar

from engine.core.errors import TemporaryError
from engine.data.media.geometry import Geometry, UnreadableImage
from engine.data.media.medium import Pixels

T = TypeVar("T")
Render = Callable[[bytes, Geometry], Pixels]
Request = tuple[Callable[[], bytes], Geometry]
"""How to read an encoded image, and the view of it."""

_AHEAD: Final = 4
"""Images under way per worker, so that memory stays bounded."""
_PR_SET_PDEATHSIG: Final = 1
_LEFT_TO_THE_PARENT: Final = (signal.SIGINT, signal.SIGTERM)


def render_all(requests: Iterable[Request], render: Render, num_workers: int) -> Iterator[Pixels | UnreadableImage]:
    """Yield each request's pixels, or why there are none, in the order of the requests.

    Args:
        requests: the samples to read, and their views.
        render: the medium's `Medium.render`.
        num_workers: processes to decode in; 0 decodes in this one.

    Raises:
        TemporaryError: a worker process was killed.
    """
    if num_workers == 0:
        for read, geometry in requests:
            yield _attempt(functools.partial(_read_and_render, read, render, geometry))
        return
    # Spawned, not forked: torch's threads do not survive a fork, and a worker needs no torch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        yield from _render_in(pool, requests, render, _AHEAD * num_workers)
    except BrokenProcessPool:
        raise TemporaryError(
            "an image-loading worker was killed, most often for lack of memory; run the same command again, "
            "with a smaller dataloader_num_workers if it repeats"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # They ignore SIGTERM, by which the pool would end the siblings of a dead one, and wait for them for ever.
        for worker in multiprocessing.active_children():
            worker.kill()


def _read_and_render(read: Callable[[], bytes], render: Render, geometry: Geometry) -> Pixels:
    return render(read(), geometry)


def _render_in(
    pool: ProcessPoolExecutor, requests: Iterable[Request], render: Render, ahead: int
) -> Iterator[Pixels | UnreadableImage]:
    under_way: collections.deque[Future[Pixels] | UnreadableImage] = collections.deque()
    for read, geometry in requests:
        data = _attempt(read)
        if isinstance(data, UnreadableImage):
            under_way.append(data)
        else:
            with _no_signals():
                pending = pool.submit(render, data, geometry)
            under_way.append(pending)
        if len(under_way) > ahead:
            yield _result(under_way.popleft())
    while under_way:
        yield _result(under_way.popleft())


def _result(pending: Future[Pixels] | UnreadableImage) -> Pixels | UnreadableImage:
    return pending if isinstance(pending, UnreadableImage) else _attempt(pending.result)


def _attempt(action: Callable[[], T]) -> T | UnreadableImage:
    try:
        return action()
    except UnreadableImage as error:
        return error


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Keep the signals waiting. A worker that is started meanwhile inherits that, until it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int) -> None:
    """A worker leaves signals to its parent, and dies with it however that ends."""
    for signum in _LEFT_TO_THE_PARENT:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_PARENT)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request above
        os._exit(1)

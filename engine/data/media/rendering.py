"""Decode samples to pixels, in this process or in worker processes, which end with it."""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, TypeVar

from engine.core.errors import TemporaryError
from engine.core.process.signals import die_with_parent
from engine.data.media.geometry import Geometry, UnreadableImage
from engine.data.media.medium import Pixels

T = TypeVar("T")
Render = Callable[[bytes, Geometry], Pixels]
Request = tuple[Callable[[], bytes], Geometry]
"""A function that reads an encoded sample, and the view to render."""

_AHEAD: Final = 4
"""Pending images per worker, which bounds the memory."""
_AHEAD_BYTES: Final = 1 << 30
"""The memory that pending pixels may take, unless each worker has one view: fewer clips fit than images."""
_LEFT_TO_THE_PARENT: Final = (signal.SIGINT, signal.SIGTERM)


def render_all(requests: Iterable[Request], render: Render, num_workers: int) -> Iterator[Pixels | UnreadableImage]:
    """Yield each request's pixels, or the UnreadableImage that was raised, in the order of the requests.

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
    # Spawned, not forked: torch's threads do not survive a fork, and workers do not need torch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        yield from _render_in(pool, requests, render, num_workers)
    except BrokenProcessPool:
        raise TemporaryError(
            "an image-loading worker was killed, usually because memory ran out; run the same command again, "
            "with a smaller dataloader_num_workers if it repeats"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # If a worker dies, the pool sends SIGTERM to the others, which ignore it, and would wait for them forever.
        for worker in multiprocessing.active_children():
            worker.kill()


def _read_and_render(read: Callable[[], bytes], render: Render, geometry: Geometry) -> Pixels:
    return render(read(), geometry)


def _render_in(
    pool: ProcessPoolExecutor, requests: Iterable[Request], render: Render, num_workers: int
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
        fitting = _AHEAD_BYTES // (3 * math.prod(geometry.extent))
        if len(under_way) > max(num_workers, min(_AHEAD * num_workers, fitting)):
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
    """Block signals. A worker that is started meanwhile inherits the mask until `_start_worker` ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int) -> None:
    """Make a worker ignore the signals that its parent handles, and have it killed when the parent dies."""
    for signum in _LEFT_TO_THE_PARENT:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_PARENT)
    die_with_parent()
    if os.getppid() != parent:  # it died before the request above
        os._exit(1)

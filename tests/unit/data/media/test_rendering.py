"""Decoding in workers: the same pixels in the same order, and processes that do not outlive their work."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from engine.core.errors import TemporaryError
from engine.data.media import image, rendering
from engine.data.media.geometry import UnreadableImage, geometry
from engine.data.media.rendering import render_all
from tests.support.fakes import png

ROOT = Path(__file__).parents[4]


def request(k, size=(8, 8)):
    view = geometry(size, target=(8, 8), center_crop=True, crop_words=(0, 0), flip=bool(k % 2))
    return functools.partial(png, k, size), view


def failing():
    raise UnreadableImage("the file is empty")


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def no_worker_is_left():
    return wait_until(lambda: multiprocessing.active_children() == [])


@pytest.mark.parametrize("ahead_bytes, most", [(1 << 30, 8), (5 * 192, 5), (0, 2)])
def test_pending_pixels_are_bounded(ahead_bytes, most, monkeypatch):
    """A view of 8 x 8 pixels has 192 bytes; each of two workers has one view at least, four at most."""
    monkeypatch.setattr(rendering, "_AHEAD_BYTES", ahead_bytes)
    pending = []

    class Pool:
        def submit(self, render, data, view):
            pending.append(Future())
            pending[-1].set_result(len(pending))
            return pending[-1]

    done, outstanding = 0, []
    for pixels in rendering._render_in(Pool(), [request(k) for k in range(20)], None, 2):
        outstanding.append(len(pending) - done)
        done += 1
        assert pixels == done
    assert done == 20 and max(outstanding) == most + 1  # one of which is handed over


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_order_is_kept_and_failures_stay_single(num_workers):
    requests = [request(k) for k in range(20)]
    requests[3] = (failing, requests[3][1])  # cannot be read
    requests[7] = (lambda: b"no image", requests[7][1])  # cannot be decoded
    requests[19] = request(19, (8, 16))[0], request(19, (8, 24))[1]  # is not what it was
    results = list(render_all(iter(requests), image.render, num_workers))
    assert [k for k, found in enumerate(results) if isinstance(found, UnreadableImage)] == [3, 7, 19]
    assert "the file is empty" in str(results[3]) and "changed" in str(results[19])
    for k in set(range(19)) - {3, 7}:
        assert np.array_equal(results[k], image.render(requests[k][0](), requests[k][1]))
    assert no_worker_is_left()


def test_no_requests_no_results():
    assert list(render_all([], image.render, 0)) == list(render_all([], image.render, 1)) == []


def test_memory_stays_bounded():
    """Images are read only a little ahead of what is taken."""
    read = []

    def requests():
        for k in range(100):
            read.append(k)
            yield request(k)

    rendered = render_all(requests(), image.render, 1)
    next(rendered)
    assert len(read) <= 8
    rendered.close()
    assert no_worker_is_left()


def test_an_error_that_is_no_images_fault_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(render_all([(lambda: 1 // 0, request(0)[1])], image.render, 1))
    assert no_worker_is_left()


def test_a_killed_worker_is_a_temporary_error():
    rendered = render_all((request(k) for k in range(100_000)), image.render, 1)
    next(rendered)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(TemporaryError, match=r"worker was killed.*smaller dataloader_num_workers") as caught:
        for _ in rendered:
            pass
    assert caught.value.code == 75
    assert no_worker_is_left()


SCRIPT = """
import io, multiprocessing, os, signal, sys, time
from PIL import Image
from engine.core.errors import TemporaryError
from engine.data.media.geometry import geometry
from engine.data.media.image import render
from engine.data.media.rendering import render_all

if __name__ == "__main__":
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    view = geometry((8, 8), target=(8, 8), center_crop=True, crop_words=(0, 0), flip=False)
    rendered = render_all(((buffer.getvalue, view) for _ in range(100_000)), render, 2)
    for _ in range(500):
        next(rendered)
    time.sleep(1.5)  # both have started, and wait for work
    workers = sorted(worker.pid for worker in multiprocessing.active_children())
    print(*workers, flush=True)
    if len(sys.argv) == 1:
        signal.pause()
    os.kill(workers[int(sys.argv[1])], signal.SIGKILL)
    try:
        for _ in rendered:
            pass
    except TemporaryError:
        sys.exit(75)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started(tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("which", [0, 1])
def test_a_process_ends_although_one_of_its_workers_was_killed(tmp_path, which):
    """One of two idle workers holds the lock of their queue. When that one is killed the other waits for it forever,
    unless the pool's SIGTERM ends it: the pool joins it, and so does the interpreter at exit."""
    with started(tmp_path, str(which)) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        try:
            process.wait(timeout=8)
        except subprocess.TimeoutExpired:
            pytest.fail("it hangs")
        finally:
            process.kill()
        assert process.returncode == 75 and len(workers) == 2
        assert wait_until(lambda: not any(map(alive, workers)))


def test_workers_die_with_their_parent_and_leave_the_terminals_signal_to_it(tmp_path):
    with started(tmp_path) as process:
        try:
            workers = [int(pid) for pid in process.stdout.readline().split()]
            assert len(workers) == 2 and all(map(alive, workers))
            for worker in workers:
                os.kill(worker, signal.SIGINT)
            time.sleep(0.2)
            assert all(map(alive, workers))
        finally:
            process.kill()
        assert wait_until(lambda: not any(map(alive, workers)))

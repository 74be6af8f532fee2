"""One of several processes of a job, and how the end of one ends all.

Gradients are sent by the device's backend (NCCL, or gloo on a CPU), everything else by gloo as JSON; no pickle is used.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from engine.core.errors import Interrupted, JobError, PeerInterrupted, TemporaryError, first_line
from engine.core.process.environment import Place
from engine.core.process.signals import Stop
from engine.training.distributed.processes import Processes, T

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from engine.training.distributed.peers import PeerWatch

MEETING_TIME: Final = datetime.timedelta(minutes=10)
"""The time that all processes have for starting: importing from a slow network disk takes minutes."""
GATHER_TIME: Final = datetime.timedelta(minutes=30)
"""The time that the slowest process has for sending a gradient. `PeerWatch` notices at once if one ends."""
WAITING_TIME: Final = datetime.timedelta(days=30)
"""The time for exchanges that wait for work of unknown length, such as a download."""


class Group(Processes):
    """One of several processes. Use `connected`, which opens and closes it."""

    def __init__(self, place: Place, stop: Stop, watch: PeerWatch, control: dist.ProcessGroup) -> None:
        super().__init__(place)
        self._stop = stop
        self._watch = watch
        self._control = control
        self._gradients: Any = None
        self._rows: torch.Tensor | None = None

    def open_device(self, device: torch.device) -> None:
        import torch.distributed as dist

        backend = "nccl" if device.type == "cuda" else "gloo"
        with self._talking():
            self._gradients = dist.new_group(backend=backend, timeout=GATHER_TIME)

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        import torch
        import torch.distributed as dist

        # An all-gather, because every process adds up all rows itself, in the order of the ranks. So the bits are those
        # of one process that does all the work. An all-reduce would add in an order of its own.
        count = self.world_size * own.numel()
        if self._rows is None or (self._rows.numel(), self._rows.dtype) != (count, own.dtype):
            self._rows = torch.empty(count, dtype=own.dtype, device=own.device)
        with self._talking():
            dist.all_gather_single(self._rows, own, group=self._gradients)
        return self._rows.view(self.world_size, -1)

    def deal(self, own: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        import torch
        import torch.distributed as dist

        size = own.dtype.itemsize
        received = torch.empty(self.world_size * lengths[self.rank], dtype=own.dtype, device=own.device)
        with self._talking():
            dist.all_to_all_single(
                received.view(torch.uint8),  # not every backend knows 16-bit numbers
                own.view(torch.uint8),
                [lengths[self.rank] * size] * self.world_size,
                [length * size for length in lengths],
                group=self._gradients,
            )
        return received.view(self.world_size, lengths[self.rank])

    def bring_to_first(
        self, own: torch.Tensor | None, owner: int, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        import torch
        import torch.distributed as dist

        if owner == self.rank == 0 and own is not None:
            return own
        tensor = torch.empty(0) if own is None else own.detach().cpu().contiguous()
        with self._talking():
            if owner == self.rank:
                dist.send(tensor, dst=0, group=self._control)
            elif self.is_first:
                tensor = torch.empty(tuple(shape), dtype=dtype)
                dist.recv(tensor, src=owner, group=self._control)
        return tensor

    def exchange(self, own: Any) -> list[Any]:
        import torch
        import torch.distributed as dist

        data = _to_tensor(json.dumps(own).encode())
        with self._talking():
            sizes = torch.empty(self.world_size, dtype=torch.int64)
            dist.all_gather_single(sizes, torch.tensor([data.numel()]), group=self._control)
            longest = int(sizes.max())
            rows = torch.empty(self.world_size * longest, dtype=torch.uint8)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: data.numel()] = data
            dist.all_gather_single(rows, padded, group=self._control)
        pieces = zip(rows.view(self.world_size, longest), sizes.tolist(), strict=True)
        return [json.loads(row[:size].numpy().tobytes()) for row, size in pieces]

    def broadcast(self, action: Callable[[], T]) -> T:
        import torch
        import torch.distributed as dist

        data = json.dumps(action()).encode() if self.is_first else b""
        size = torch.tensor([len(data)])
        with self._talking():
            dist.broadcast(size, src=0, group=self._control)
            payload = _to_tensor(data) if self.is_first else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(payload, src=0, group=self._control)
        value: T = json.loads(payload.numpy().tobytes())
        return value

    def broadcast_into(self, buffer: memoryview, fill: Callable[[memoryview], int]) -> int:
        import torch
        import torch.distributed as dist

        count = torch.tensor([fill(buffer) if self.is_first else 0])
        with self._talking():
            dist.broadcast(count, src=0, group=self._control)
            if int(count) > 0:
                received = torch.frombuffer(buffer[: int(count)], dtype=torch.uint8)
                dist.broadcast(received, src=0, group=self._control)
        return int(count)

    def first_then_others(self, action: Callable[[], T]) -> T:
        if self.is_first:
            result = action()
            self.exchange("done")
        else:
            self.exchange("ready")
            result = action()
        return result

    def agree(self, *, signum: int, save: bool, finish: bool = False) -> tuple[int, bool, bool]:
        import torch
        import torch.distributed as dist

        found = torch.tensor([signum, int(save), int(finish)])
        with self._talking():
            work = dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._control, async_op=True)
            work.wait(GATHER_TIME)  # the group itself would wait for a process that hangs as long as for a download
        return int(found[0]), bool(found[1]), bool(found[2])

    def require_same(self, what: str, own: Any, error: type[JobError]) -> None:
        values = self.exchange(own)
        for rank, value in enumerate(values):
            if value != values[0]:
                raise error(
                    f"{what} must be the same in all processes of the job, but is {values[0]!r} in process 0 and "
                    f"{value!r} in process {rank}"
                )

    def ignore_signals_unless_first(self) -> None:
        if not self.is_first:
            self._stop.ignore()

    @contextmanager
    def translating_peer_errors(self) -> Iterator[None]:
        try:
            yield
        except PeerInterrupted:
            raise
        except Interrupted as error:
            # torchrun sends SIGTERM as soon as one process has ended: the reason may still be on its way.
            found = self._watch.news(seconds=1.0)
            if found is None or found.is_interruption:
                raise
            raise found.error() from error
        finally:
            self._stop.ignore()
            self._watch.is_ending.set()

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Replace the backend's error about a lost connection by the reason of the process that has ended."""
        try:
            yield
        except RuntimeError as error:
            found = self._watch.news(seconds=5.0)
            if found is None:
                reason = first_line(error)
                raise TemporaryError(f"the processes of the job lost their connection ({reason})") from error
            raise found.error() from error


def _to_tensor(data: bytes) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


@contextmanager
def connected(place: Place, stop: Stop) -> Iterator[Processes]:
    """Connect to the other processes of the job, and finally tell them how this one ended.

    Raises:
        TemporaryError: they did not connect in time.
    """
    if place.world_size == 1:
        yield Processes(place)
        return
    from engine.training.distributed.peers import Ending, ending_of

    group, watch = _meet(place, stop)
    ending = Ending(place.rank)
    try:
        yield group
    except BaseException as error:
        ending = ending_of(error, place.rank)
        raise
    finally:
        watch.close(ending)


def _meet(place: Place, stop: Stop) -> tuple[Group, PeerWatch]:
    # There is nothing to save yet, and a Python handler would not run while C++ code waits.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
    import torch.distributed as dist

    from engine.training.distributed.peers import PeerWatch

    if os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1", "::1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the only interface of a container without a network
    try:
        dist.init_process_group("gloo", rank=place.rank, world_size=place.world_size, timeout=MEETING_TIME)
        control = dist.new_group(backend="gloo", timeout=WAITING_TIME)
        watch = PeerWatch(place, stop.peer_ended)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = first_line(error)
        raise TemporaryError(
            f"the {place.world_size} processes of the job could not connect to {where} ({reason})"
        ) from error
    stop.install()
    return Group(place, stop, watch, control), watch

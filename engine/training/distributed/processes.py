"""The exchanges between the processes of a job, and what only the first one does.

`Processes` is a job with one process, `group.Group` one of several; the loop does not depend on which. All exchanges
are collective: every process must call the same ones in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from engine.core.errors import JobError
from engine.core.process.environment import Place

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Processes:
    """The only process of a job: it exchanges values with itself."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def world_size(self) -> int:
        return self.place.world_size

    @property
    def is_first(self) -> bool:
        """True for the process that writes, prints and publishes."""
        return self.place.is_first

    def owner(self, micro_batch: int) -> int:
        """Return the rank of the process that computes a step's micro-batch k = round x W + rank."""
        return micro_batch % self.world_size

    def open_device(self, device: torch.device) -> None:
        """Use `device` for exchanging gradients from now on."""

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """Return each process's `own`, shape (n,), as rows in the order of ranks, shape (W, n).

        The result is overwritten by the next call.
        """
        return own.unsqueeze(0)

    def deal(self, own: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Send a part of `own`, shape (n,), to each process, and return the parts that all of them have for this one.

        Args:
            own: the parts for all processes, one after the other in the order of ranks.
            lengths: the length of each part. All processes call this with the same lengths.

        Returns:
            The parts as rows, in the order of ranks, shape (W, lengths[rank]).
        """
        return own.unsqueeze(0)

    def bring_to_first(
        self, own: torch.Tensor | None, owner: int, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """Return a tensor that another process has, on the CPU; only the first process and the owner need it.

        All processes call it. The result is empty in those that are neither.

        Args:
            own: the tensor, in the process that has it.
            owner: the rank of that process.
            shape: the tensor's shape.
            dtype: its dtype.
        """
        assert own is not None, "the only process has all tensors"
        return own

    def exchange(self, own: Any) -> list[Any]:
        """Return the JSON-able values of all processes, in the order of ranks."""
        return [own]

    def broadcast(self, action: Callable[[], T]) -> T:
        """Call `action` only in the first process, and return its JSON-able value in all; the others wait for it."""
        return action()

    def broadcast_into(self, buffer: memoryview, fill: Callable[[memoryview], int]) -> int:
        """Call `fill` in the first process; the others get the first bytes of its buffer, as many as it returns.

        Returns:
            What `fill` returns, in all processes; a negative number means no bytes.
        """
        return fill(buffer)

    def first_then_others(self, action: Callable[[], T]) -> T:
        """Call `action` in the first process, then in the others, which find its downloads in the cache."""
        return action()

    def agree(self, *, signum: int, save: bool, finish: bool = False) -> tuple[int, bool, bool]:
        """Agree on what to do after a step.

        All processes call it after every step, so that they act after the same one.

        Args:
            signum: the signal that this process received, or 0.
            save: whether this process finds that the progress is to be saved.
            finish: whether this process finds that the task is to end after this step.

        Returns:
            The highest signal that any process received, whether any saves, and whether any finishes.
        """
        return signum, save, finish

    def require_same(self, what: str, own: Any, error: type[JobError]) -> None:
        """Raise an `error` that names `what`, unless all processes have the same JSON-able value."""

    def ignore_signals_unless_first(self) -> None:
        """Ignore signals from now on, except in the first process: the others end when it does."""

    @contextmanager
    def translating_peer_errors(self) -> Iterator[None]:
        """Replace a signal that ends the block by the reason of another process, if that process's end caused it.

        Raises:
            PeerError: another process of the job has ended.
        """
        yield

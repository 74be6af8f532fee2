"""The window of optimizer steps whose examples are in memory at once. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from engine.task.plan.steps import StepRange
from engine.training.encoding.long_step import LongStep

T = TypeVar("T")

WINDOW_VISITS: Final = 1024
"""The most visits whose encodings are in memory at once, over all processes, unless one round of micro-batches has
more. For Stable Diffusion 1.5 at 512 pixels in float32 they take about 0.4 GB."""
WINDOW_BYTES: Final = 1 << 30
"""The memory that these encodings may take, over all processes: fewer visits fit where encodings are large."""
_FIRST_VISITS: Final = 128
"""The most visits of the first window, before the size of an encoding is known. At 6 MB each they take 0.8 GB."""
_GROWTH: Final = 4
"""The factor by which windows grow where the first one has a single step."""


class WindowSize:
    """The number of visits in a window, by the size of the encodings so far. It is the same in all processes."""

    def __init__(self, latents_bytes: int = 0) -> None:
        """`latents_bytes` is the most that the moments of a visit's latents may take: later windows may have larger
        clips than those so far."""
        self._latents_bytes = latents_bytes
        self._visit_bytes = 0

    @property
    def visits(self) -> int:
        """The number of visits of the next window."""
        if not self._visit_bytes:
            return min(WINDOW_VISITS, _FIRST_VISITS, max(1, WINDOW_BYTES // max(1, self._latents_bytes)))
        return min(WINDOW_VISITS, max(1, WINDOW_BYTES // max(self._visit_bytes, self._latents_bytes)))

    def measured(self, visit_bytes: int) -> None:
        """Take note of the bytes per visit of some examples, the most that any process has found."""
        self._visit_bytes = max(self._visit_bytes, visit_bytes)


class StepWindow(Generic[T]):
    """Returns the examples of any step, and makes those of a window of steps when the first of them is needed."""

    def __init__(
        self,
        make: Callable[[int, int], list[T]],
        step_range: StepRange,
        *,
        size: WindowSize,
        world_size: int,
        starts_small: bool,
        check_stop: Callable[[], None],
    ) -> None:
        """
        Args:
            make: returns this process's examples among a number of visits from a first one, whole rounds only.
            size: the number of visits in a window.
            world_size: number of processes that share the micro-batches of a step.
            starts_small: whether the first window has one step only, which is then trained early, and each further one
                at most four times as many. For encoders that need not be moved for each of these windows.
            check_stop: called with each micro-batch of a long step; raises when the job is to stop.
        """
        self._make = make
        self._step_range = step_range
        self._size = size
        self._world_size = world_size
        self._check_stop = check_stop
        self._examples: dict[int, Sequence[T]] = {}
        self._most_steps = 1 if starts_small else WINDOW_VISITS
        self._is_partial = False

    @property
    def is_partial(self) -> bool:
        """True if the window that is made now is smaller than `size`, and another one follows."""
        return self._is_partial

    def examples(self, step: int) -> Sequence[T]:
        """Return the examples of a step, in the order of their visits.

        Each step is asked for once, in order, here or by `at_hand`. If a step has more visits than a window, the result
        is a `LongStep`.
        """
        if step not in self._examples:
            self._fill(step)
        return self._examples.pop(step)

    def at_hand(self, step: int) -> Sequence[T]:
        """Return the examples of a step if they are made already, else none."""
        return self._examples.pop(step, [])

    def _fill(self, start: int) -> None:
        per_step, visits = self._step_range.visits_per_step, self._size.visits
        self._is_partial = False
        if per_step > visits:
            self._examples = {start: self._long_step(start * per_step)}
            return
        num_steps = min(visits // per_step, self._most_steps)
        steps = range(start, min(start + num_steps, self._step_range.stop_step))
        self._is_partial = num_steps < visits // per_step and steps.stop < self._step_range.stop_step
        self._most_steps = min(WINDOW_VISITS, self._most_steps * _GROWTH)
        examples = self._make(start * per_step, len(steps) * per_step)
        per_step = len(examples) // len(steps)
        self._examples = {k: examples[i * per_step : (i + 1) * per_step] for i, k in enumerate(steps)}

    def _long_step(self, start: int) -> LongStep[T]:
        size = self._step_range.batch_size
        return LongStep(
            make=self._make,
            start=start,
            size=size,
            round_visits=size * self._world_size,
            num_rounds=self._step_range.micro_batches // self._world_size,
            window=lambda: max(1, self._size.visits // (size * self._world_size)),
            check_stop=self._check_stop,
        )

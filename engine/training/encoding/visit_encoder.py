"""Encode visits ahead of the loop, a window of steps at a time. Each image and caption is encoded once.

The bits of an encoding depend only on its own image or caption, so windows, cache hits and workers make no difference.
The moments are stored, not samples: each visit draws its own latents from the posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.core.console import Meter
from engine.models.family import Family, Tensors
from engine.task.plan.steps import StepRange
from engine.task.plan.visits import Visit, VisitStream
from engine.training.distributed.processes import Processes
from engine.training.encoding.cache import EncodingCache, cache_key
from engine.training.encoding.captions import CaptionEncoder
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.images import ImageEncoder, View
from engine.training.encoding.step_window import StepWindow, WindowSize
from engine.training.encoding.unreadable import UnreadableImages
from engine.training.encoding.visit_choice import VisitChoice


@dataclass(frozen=True, slots=True)
class Example:
    """One visit with its encodings, on the CPU."""

    visit: Visit
    moments: Tensors
    """The moments from `Family.encode_pixels`; with masks also `mask`."""
    conditioning: Tensors
    tokens: Tensors = field(default_factory=dict)
    """The caption's token ids if the text encoders are trained, and so encode it in the loop; else empty."""


class VisitEncoder:
    """Returns the examples of any step, and encodes a window of steps when the first of them is needed."""

    def __init__(
        self,
        *,
        stream: VisitStream,
        step_range: StepRange,
        choice: VisitChoice,
        images: ImageEncoder,
        captions: CaptionEncoder,
        unreadable: UnreadableImages,
        family: Family,
        cache: EncodingCache,
        placement: EncoderPlacement,
        processes: Processes,
        starts_small: bool,
        check_stop: Callable[[], None],
        latents_bytes: int = 0,
    ) -> None:
        """
        Args:
            latents_bytes: the most that the moments of a visit's latents take.
            processes: the processes that share the micro-batches.
            starts_small: see `StepWindow`.
            check_stop: called between encodings; raises when the job is to stop.
        """
        self._stream = stream
        self._step_range = step_range
        self._choice = choice
        self._images = images
        self._captions = captions
        self._unreadable = unreadable
        self._family = family
        self._cache = cache
        self._placement = placement
        self._processes = processes
        self._check_stop = check_stop
        self._size = WindowSize(latents_bytes)
        self._window = StepWindow(
            self._encode,
            step_range,
            size=self._size,
            world_size=processes.world_size,
            starts_small=starts_small,
            check_stop=check_stop,
        )

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each image that cannot be trained on, as far as visits have found them."""
        return self._unreadable.skipped

    def examples(self, step: int) -> Sequence[Example]:
        """Return the examples of this process's micro-batches of a step; see `StepWindow.examples`.

        Raises:
            DatasetError: no image of the dataset is readable.
            TemporaryError: a worker process was killed.
        """
        return self._window.examples(step)

    def at_hand(self, step: int) -> Sequence[Example]:
        """Return the examples of a step if they are encoded already, else none."""
        return self._window.at_hand(step)

    def encode_ahead(self, start_step: int) -> int:
        """Encode what the visits from a step on need into the cache, and keep nothing in memory. A collective call.

        The encoders stay on the device. Random crops are left out: they are not stored, and need no text encoder.

        Returns:
            The first step that may need something else: the cache is full then, or cannot be written; the number after
            the last step if all is encoded.
        """
        if not self._cache.max_bytes:
            return start_step
        per_step = self._step_range.visits_per_step
        round_visits = self._step_range.batch_size * self._processes.world_size
        start, stop = start_step * per_step, self._step_range.stop_step * per_step
        meter, number = Meter("encoding ahead", "visits", stop - start), start
        stored, own, total, grown = set[str](), set[str](), 0, 0
        try:
            # What is stored next must not displace what is stored already.
            while number < stop and total + grown <= self._cache.max_bytes:
                self._check_stop()
                count = min(max(1, self._size.visits // round_visits) * round_visits, stop - number)
                sizes = self._store(number, count, own)
                grown = sum(size for key, size in sizes.items() if key not in stored)
                if total + grown > self._cache.max_bytes or not self._can_all_write():
                    break
                stored.update(sizes)
                total += grown
                number += count
                self._size.measured(grown // count)
                meter.update(number - start)
        finally:
            meter.close()
        return number // per_step

    def _store(self, start: int, count: int, own: set[str]) -> dict[str, int]:
        """Encode visits into the cache, except for what this process has encoded or found there before.

        Args:
            start: the first visit's number.
            count: the number of visits, whole rounds of micro-batches.
            own: the keys of what this process has encoded or found, which are extended.

        Returns:
            The bytes of what is new in any process, by key.
        """
        visits = list(self._stream.visits(start, count))
        views, found = self._encode_images(
            visits, is_left_out=lambda view: view.key in own or not view.geometry.repeatable
        )
        shown = zip(filter(self._is_own, visits), views, strict=True)
        captions = {
            cache_key("caption", text): text
            for text in (self._choice.caption(visit, view.sample) for visit, view in shown)
        }
        new = {key: text for key, text in captions.items() if key not in own}
        encoded = self._captions.encode(list(new.values()))
        found |= {key: conditioning for key, (conditioning, _) in zip(new, encoded, strict=True)}
        self._cache.trim()
        own.update(found)
        sizes = {key: sum(tensor.nbytes for tensor in tensors.values()) for key, tensors in found.items()}
        return {key: size for one in self._processes.exchange(sizes) for key, size in one.items()}

    def _can_all_write(self) -> bool:
        return all(self._processes.exchange(self._cache.is_writable))

    def _encode(self, start: int, count: int) -> list[Example]:
        """Encode visits from number `start` on, whole rounds of micro-batches; return this process's examples.

        All processes call this for the same visits in the same order.
        """
        visits = list(self._stream.visits(start, count))
        own = list(filter(self._is_own, visits))
        views, moments = self._encode_images(visits)
        captions = self._captions.encode(
            [self._choice.caption(visit, view.sample) for visit, view in zip(own, views, strict=True)]
        )
        if not self._window.is_partial:
            self._placement.end_stay()
        self._placement.release()
        self._cache.trim()
        examples = [
            Example(visit, moments[view.key], conditioning | self._family.place(view.geometry), tokens)
            for visit, view, (conditioning, tokens) in zip(own, views, captions, strict=True)
        ]
        self._size.measured(max(self._processes.exchange(_num_bytes(examples) // len(examples))))
        return examples

    def _is_own(self, visit: Visit) -> bool:
        """Return whether this process trains on a visit."""
        micro_batch = visit.number % self._step_range.visits_per_step // self._step_range.batch_size
        return self._processes.owner(micro_batch) == self._processes.rank

    def _encode_images(
        self, visits: Sequence[Visit], *, is_left_out: Callable[[View], bool] = lambda view: False
    ) -> tuple[list[View], dict[str, Tensors]]:
        """Return the view of each of this process's visits, and their moments by key, but for views that are left out.

        Other processes do the same with theirs.

        An image that several processes show is encoded by the process of its first visit; the others then find it in
        the cache. If images are found unreadable meanwhile, all processes choose replacements and repeat.
        """
        moments: dict[str, Tensors] = {}
        while True:
            views = [self._choice.view(visit) for visit in visits]
            first: dict[str, Visit] = {}
            for visit, view in zip(visits, views, strict=True):
                first.setdefault(view.key, visit)
            own = [view for visit, view in zip(visits, views, strict=True) if self._is_own(visit)]
            missing = {view.key: view for view in own if view.key not in moments and not is_left_out(view)}
            mine = [view for view in missing.values() if self._is_own(first[view.key])]
            others = [view for view in missing.values() if not self._is_own(first[view.key])]
            moments |= self._images.encode(mine, self._unreadable.add)
            # The exchange is also a barrier, before the others look into the cache.
            has_news = self._unreadable.exchange()
            moments |= self._images.encode(others, self._unreadable.add)
            has_news |= self._unreadable.exchange()
            if not has_news:
                return own, moments


def _num_bytes(examples: Sequence[Example]) -> int:
    """Return the bytes of the examples' tensors. What several visits share counts once."""
    parts = (part for one in examples for part in (one.moments, one.conditioning, one.tokens))
    return sum({id(tensor): tensor.nbytes for part in parts for tensor in part.values()}.values())

"""Encode visits ahead of the loop, a window of steps at a time. Each image and caption is encoded once.

The bits of an encoding depend only on its own image or caption, so windows, cache hits and workers make no difference.
The moments are stored, not samples: each visit draws its own latents from the posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.models.family import Family, Tensors
from engine.task.plan.steps import StepRange
from engine.task.plan.visits import Visit, VisitStream
from engine.training.distributed.group import Processes
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.captions import CaptionEncoder
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.images import ImageEncoder, View
from engine.training.encoding.step_window import StepWindow
from engine.training.encoding.unreadable import UnreadableImages
from engine.training.encoding.visit_choice import VisitChoice


@dataclass(frozen=True, slots=True)
class Example:
    """One visit with its encodings, on the CPU."""

    visit: Visit
    moments: Tensors
    """The moments from `Family.encode_image`; with masks also `mask`."""
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
        check_stop: Callable[[], None],
    ) -> None:
        """
        Args:
            processes: the processes that share the micro-batches.
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
        self._window = StepWindow(self._encode, step_range, world_size=processes.world_size, check_stop=check_stop)

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

    def _encode(self, start: int, count: int) -> list[Example]:
        """Encode visits from number `start` on, whole rounds of micro-batches; return this process's examples.

        All processes call this for the same visits in the same order.
        """
        visits = list(self._stream.visits(start, count))
        own = list(filter(self._is_own, visits))
        images = self._encode_images(visits)
        captions = self._captions.encode(
            [self._choice.caption(visit, view.sample) for visit, (view, _) in zip(own, images, strict=True)]
        )
        self._placement.release()
        self._cache.trim()
        return [
            Example(visit, moments, conditioning | self._family.place(view.geometry), tokens)
            for visit, (view, moments), (conditioning, tokens) in zip(own, images, captions, strict=True)
        ]

    def _is_own(self, visit: Visit) -> bool:
        """Return whether this process trains on a visit."""
        micro_batch = visit.number % self._step_range.visits_per_step // self._step_range.batch_size
        return self._processes.owner(micro_batch) == self._processes.rank

    def _encode_images(self, visits: Sequence[Visit]) -> list[tuple[View, Tensors]]:
        """Return the view and its moments for each of this process's visits; other processes do the same with theirs.

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
            missing = {view.key: view for view in own if view.key not in moments}
            mine = [view for view in missing.values() if self._is_own(first[view.key])]
            others = [view for view in missing.values() if not self._is_own(first[view.key])]
            moments |= self._images.encode(mine, self._unreadable.add)
            # The exchange is also a barrier, before the others look into the cache.
            has_news = self._unreadable.exchange()
            moments |= self._images.encode(others, self._unreadable.add)
            has_news |= self._unreadable.exchange()
            if not has_news:
                return [(view, moments[view.key]) for view in own]

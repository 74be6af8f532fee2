"""Visits to encodings: each image and caption is encoded once, ahead of the loop, a window of steps at a time.

The bits of an encoding depend on its own image or caption alone, so windows, cache hits and workers change nothing.
Moments are kept, not samples: the posterior is drawn freshly on each visit.
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
    """One visit with what the encoders made of it, on the CPU."""

    visit: Visit
    moments: Tensors
    """What `Family.encode_image` gave; with masks also `mask`."""
    conditioning: Tensors
    tokens: Tensors = field(default_factory=dict)
    """The caption's, where the text encoders are trained and encode it in the loop; else empty."""


class VisitEncoder:
    """Gives the examples of any step, encoding the visits of a window of coming steps when it first needs one."""

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
            processes: that share the micro-batches out.
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
        """Name and reason of each image that cannot be trained on; they are found when they are visited."""
        return self._unreadable.skipped

    def examples(self, step: int) -> Sequence[Example]:
        """Return the examples of this process's micro-batches of a step. As `StepWindow.examples`.

        Raises:
            DatasetError: no image of the dataset is readable.
            TemporaryError: a worker process was killed.
        """
        return self._window.examples(step)

    def at_hand(self, step: int) -> Sequence[Example]:
        """Return `examples` of a step that is encoded already; else none."""
        return self._window.at_hand(step)

    def _encode(self, start: int, count: int) -> list[Example]:
        """This process's examples among the visits number `start … start + count - 1`, whole rounds of micro-batches.

        All processes encode the same visits in the same order.
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
        """Whether this process trains on a visit."""
        micro_batch = visit.number % self._step_range.visits_per_step // self._step_range.batch_size
        return self._processes.owner(micro_batch) == self._processes.rank

    def _encode_images(self, visits: Sequence[Visit]) -> list[tuple[View, Tensors]]:
        """What each own visit of a window shows; the other processes do the same with theirs.

        An image that several processes show is encoded by the one that shows it first; the others find it on the disk.
        Repeated until all of it is encoded: an unreadable image is only then found out.
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
            # A round of exchange is also what the others wait for before they look on the disk.
            has_news = self._unreadable.exchange()
            moments |= self._images.encode(others, self._unreadable.add)
            has_news |= self._unreadable.exchange()
            if not has_news:
                return [(view, moments[view.key]) for view in own]

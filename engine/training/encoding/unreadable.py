"""Collect the images of a dataset that cannot be shown. All processes of a job agree on them."""

from __future__ import annotations

from collections.abc import Callable

from engine.core.errors import DatasetError
from engine.data.dataset.dataset import ImageDataset, none_readable
from engine.training.distributed.processes import Processes


class UnreadableImages:
    """The images found unreadable, with the reasons. Processes exchange them."""

    def __init__(
        self, dataset: ImageDataset, processes: Processes, say: Callable[[str], None], *, what: str = "the dataset"
    ) -> None:
        """
        Args:
            say: takes a line about each image that is skipped.
            what: the dataset's name in messages.
        """
        self._dataset = dataset
        self._processes = processes
        self._say = say
        self._what = what
        self._reasons: dict[int, str] = {}
        self._exchanged: set[int] = set()

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, sample: object) -> bool:
        return sample in self._reasons

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each image."""
        return [(self._dataset.name(sample), reason) for sample, reason in self._reasons.items()]

    def add(self, sample: int, reason: Exception | str) -> None:
        """Record an image that cannot be shown."""
        if sample not in self._reasons:
            self._reasons[sample] = str(reason)
            self._say(f"skipping {self._dataset.names.noun} {self._dataset.name(sample)}: {reason}")

    def exchange(self) -> bool:
        """Share each process's images with all others; a collective call. Return whether there were new ones."""
        own = [[sample, reason] for sample, reason in self._reasons.items() if sample not in self._exchanged]
        found = {sample: reason for news in self._processes.exchange(own) for sample, reason in news}
        for sample, reason in sorted(found.items()):
            self.add(sample, reason)
        self._exchanged.update(found)
        return bool(found)

    def none_readable(self) -> DatasetError:
        """Return the error for a dataset without a single image that can be shown."""
        return DatasetError(none_readable(self._what, self._dataset, *self.skipped[0]))

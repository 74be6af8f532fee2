"""The held-out loss: how well the denoiser predicts images that it is not trained on.

Every image has its own timesteps, noise and posterior draw, addressed only by its number. So two measurements of a
chain differ only if the weights do. A measurement has no effect on the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from engine.core.console import Meter, say
from engine.data.caption_choice import with_trigger
from engine.data.dataset.dataset import ImageDataset
from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium
from engine.models.family import PRECISIONS, Batch, Family, Tensors
from engine.models.objectives.objective import LossOptions
from engine.results import held_out_rows
from engine.results.held_out_rows import Row
from engine.results.outcome import Outcome
from engine.task.plan.extent import Extent
from engine.task.plan.steps import StepRange
from engine.task.plan.timesteps import Timesteps
from engine.task.plan.visits import Epochs
from engine.task.task import Task
from engine.training.distributed.processes import Processes
from engine.training.encoding.batches import copied, embed_captions, normal, stacked
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.captions import CaptionEncoder
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.images import ImageEncoder, View
from engine.training.encoding.unreadable import UnreadableImages


@dataclass(frozen=True, slots=True)
class _Measured:
    """One held-out image with its encodings, on the CPU."""

    number: int
    """Its number in the order of measuring, which addresses everything random about it."""
    extent: Extent
    """The size of what is shown of it."""
    moments: Tensors
    conditioning: Tensors
    tokens: Tensors


class HeldOutLoss:
    """Measures the loss of each held-out image with the current weights. Images are encoded at the first measurement.

    Each image is shown in a central crop and with its first caption, without the augmentations of training: no random
    crops, flips, dropout, shuffled tags or masks. Of a clip the first frames are shown. The encodings stay in memory.
    """

    def __init__(
        self,
        task: Task,
        dataset: ImageDataset,
        medium: Medium,
        *,
        timesteps: Timesteps,
        target: Callable[[Extent], Extent],
        family: Family,
        cache: EncodingCache,
        placement: EncoderPlacement,
        device: torch.device,
        processes: Processes,
        check_stop: Callable[[], None],
    ) -> None:
        """
        Args:
            task: the task, for its resolution, captions, precision and seed.
            dataset: the held-out images.
            medium: the medium of the images.
            timesteps: the timesteps that are trained.
            target: returns the size at which a sample of a given size is shown.
            placement: moves or frees the encoders.
            processes: the processes that share the images.
            check_stop: called between images; raises when the job is to stop.
        """
        self._dataset = dataset
        self._timesteps = timesteps
        self._family = family
        self._cache = cache
        self._device = device
        self._processes = processes
        self._check_stop = check_stop
        self._seed = task.seed
        self._target = target
        self._trigger_word = task.dataset.trigger_word
        self._dtype = PRECISIONS[task.mixed_precision]
        self._placement = placement
        self._images = ImageEncoder(
            dataset,
            medium,
            family,
            cache,
            self._placement,
            check_stop=check_stop,
            num_workers=task.dataloader_num_workers,
        )
        self._captions = CaptionEncoder(
            family,
            cache,
            self._placement,
            check_stop=check_stop,
            length=family.spec.caption_tokens.unusual(task.dataset),
            is_trained=task.train_args.train_text_encoder,
        )
        self._unreadable = UnreadableImages(
            dataset, processes, lambda line: say(f"held out: {line}"), what="validation.dataset"
        )
        self._own: list[_Measured] | None = None

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each image that cannot be read."""
        return self._unreadable.skipped

    def measure(self) -> list[list[float]]:
        """Return the losses of each readable image at its timesteps, in the order of the images. A collective call.

        Raises:
            DatasetError: none of the images is readable.
        """
        if self._own is None:
            self._own = self.encode()
        meter = Meter("held-out loss", self._dataset.names.several, len(self._own))
        own: list[tuple[int, list[float]]] = []
        try:
            for one in self._own:
                self._check_stop()
                own.append((one.number, list(self._losses_of(one))))
                meter.update(len(own))
        finally:
            meter.close()
        found = sorted(pair for pairs in self._processes.exchange(own) for pair in pairs)
        return [losses for _, losses in found]

    @torch.no_grad()
    def _losses_of(self, one: _Measured) -> Iterator[float]:
        """Yield the mean squared error at each of the image's timesteps.

        Batch size 1: the loss must not depend on which other images are measured.
        """
        shape = self._family.latent_shape(one.extent)
        conditioning = stacked([one.conditioning], self._device)
        if one.tokens:
            tokens = stacked([one.tokens], self._device)
            conditioning |= embed_captions(self._family, tokens, self._dtype, self._device)
        for k, timestep in enumerate(held_out_rows.timesteps_of(one.number, self._timesteps, self._seed)):
            address = one.number * held_out_rows.STRATA + k
            posterior = normal(self._seed, "held-out posterior", address, shape)
            noise = normal(self._seed, "held-out noise", address, shape)
            batch = Batch(
                latents=copied(self._family.sample_latents(one.moments, posterior).unsqueeze(0), self._device),
                noise=copied(noise.unsqueeze(0), self._device),
                timesteps=torch.tensor([timestep], device=self._device),
                conditioning=conditioning,
            )
            yield self._family.loss(batch, LossOptions()).item()

    def encode(self) -> list[_Measured]:
        """Encode this process's share of the images, or find them in the cache. A collective call.

        Raises:
            DatasetError: none of the images is readable.
        """
        order = Epochs(self._seed, len(self._dataset)).permutation(0)
        rank = self._processes.rank
        own = {number: sample for number, sample in enumerate(order) if self._processes.owner(number) == rank}
        views = {number: view for number, sample in own.items() if (view := self._view(sample)) is not None}
        moments: dict[str, Tensors] = {}
        while missing := {one.key: one for one in views.values() if self._is_missing(one, moments)}:
            moments |= self._images.encode(list(missing.values()), self._unreadable.add)
        self._unreadable.exchange()
        if len(self._unreadable) == len(self._dataset):
            raise self._unreadable.none_readable()
        readable = {number: view for number, view in views.items() if view.sample not in self._unreadable}
        captions = self._captions.encode([self._caption(view.sample) for view in readable.values()])
        self._placement.release()
        self._cache.trim()
        return [
            _Measured(
                number,
                view.geometry.extent,
                moments[view.key],
                conditioning | self._family.place(view.geometry),
                tokens,
            )
            for (number, view), (conditioning, tokens) in zip(readable.items(), captions, strict=True)
        ]

    def _view(self, sample: int) -> View | None:
        try:
            target = self._target(self._images.extent(sample))
            return self._images.view(sample, target=target, center_crop=True)
        except UnreadableImage as error:
            self._unreadable.add(sample, error)
            return None

    def _is_missing(self, view: View, moments: dict[str, Tensors]) -> bool:
        return view.key not in moments and view.sample not in self._unreadable

    def _caption(self, sample: int) -> str:
        return with_trigger(self._dataset.captions(sample)[0], self._trigger_word)


class HeldOutCurve:
    """Measures the held-out loss of a training when it is due, and collects the rows."""

    def __init__(
        self,
        loss: HeldOutLoss | None,
        rows: list[Row],
        *,
        curve: str | None,
        step_range: StepRange,
        interval: int | None,
        outcome: Outcome,
        averaged: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        """
        Args:
            loss: the held-out loss; None if the task has none.
            rows: the chain's rows so far, which are extended.
            curve: the curve of the measurements.
            interval: number of steps between measurements; None measures only before the first and after the last step.
            outcome: receives the latest loss and the best step.
            averaged: returns a context in which the weights are their moving average, in all processes; None if there
                is none.
        """
        self._loss = loss
        self._rows = rows
        self._curve = curve
        self._step_range = step_range
        self._interval = interval
        self._outcome = outcome
        self._averaged = averaged
        self._tell()

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each held-out image that cannot be read."""
        return self._loss.skipped if self._loss else []

    def end_at(self, step: int) -> None:
        """Take note that the task ends after this step, earlier than planned: a measurement is due there."""
        self._step_range = self._step_range.ended_at(step)

    def is_due(self, step: int) -> bool:
        """Return whether `measure_if_due` measures after this step."""
        return self._curve is not None and held_out_rows.is_due(
            step, self._rows, curve=self._curve, step_range=self._step_range, interval=self._interval
        )

    def measure_if_due(self, step: int) -> Row | None:
        """Measure after this step, and add the row; return None if no measurement is due.

        All processes call this after the same steps; each measures its share.

        Raises:
            DatasetError: none of the images is readable.
        """
        if self._loss is None or self._curve is None or not self.is_due(step):
            return None
        with self._outcome.clock.phase("evaluate"):
            raw = self._loss.measure() if self._averaged else None
            with self._averaged() if self._averaged else nullcontext():
                losses = self._loss.measure()
            row = held_out_rows.row_of(step, losses, self._curve, raw=raw)
        self._rows.append(row)
        self._tell()
        average = f" with averaged weights, {_said(row.raw_loss)} without" if self._averaged else ""
        say(f"held-out loss after step {step}: {_said(row.loss)}{average}")
        return row

    def _tell(self) -> None:
        self._outcome.held_out_loss, self._outcome.best_step = held_out_rows.summary(self._rows, self._curve)


def _said(loss: float | None) -> str:
    return "not finite" if loss is None else format(loss, ".5f")

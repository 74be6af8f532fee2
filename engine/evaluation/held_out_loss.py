"""The held-out loss: how well the denoiser predicts images that it is not trained on, measured the same each time.

Every image has its own timesteps, noise and posterior draw, addressed by its number alone: two measurements of a
training, in whichever of a chain's tasks, differ by the weights and nothing else. A measurement changes nothing that
is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from engine.task.plan.steps import StepRange
from engine.task.plan.timesteps import Timesteps
from engine.task.plan.visits import Epochs
from engine.task.task import Task
from engine.training.distributed.group import Processes
from engine.training.encoding.batches import copied, embed_captions, normal, stacked
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.captions import CaptionEncoder
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.images import ImageEncoder, View
from engine.training.encoding.unreadable import UnreadableImages


@dataclass(frozen=True, slots=True)
class _Measured:
    """One held-out image with what the encoders made of it, on the CPU."""

    number: int
    """Its place in the order of measuring, which addresses what is drawn for it."""
    moments: Tensors
    conditioning: Tensors
    tokens: Tensors


class HeldOutLoss:
    """Measures the loss of each held-out image by the weights as they are; encodes the images at the first time.

    The images are shown whole in the middle and with their first caption, without what training does to see more of
    them: no random crops, flips, dropout, shuffled tags or masks. They stay in memory.
    """

    def __init__(
        self,
        task: Task,
        dataset: ImageDataset,
        medium: Medium,
        *,
        timesteps: Timesteps,
        family: Family,
        cache: EncodingCache,
        device: torch.device,
        processes: Processes,
        check_stop: Callable[[], None],
    ) -> None:
        """
        Args:
            task: whose resolution, captions, precision and seed are measured with.
            dataset: the held-out images.
            medium: of the images.
            timesteps: those that are trained.
            processes: that share the images out.
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
        self._resolution = task.train_args.resolution
        self._trigger_word = task.dataset.trigger_word
        self._dtype = PRECISIONS[task.mixed_precision]
        self._placement = EncoderPlacement(family, device)
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
            num_chunks=task.dataset.caption_chunks,
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
        """Return each readable image's losses at its timesteps, in the order of the images. A collective call.

        Raises:
            DatasetError: none of the images is readable.
        """
        if self._own is None:
            self._own = self._encode()
        meter = Meter("held-out loss", "images", len(self._own))
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
        """The mean squared error at each of the image's timesteps, each in a batch of its own: the loss must not depend
        on what else is measured."""
        shape = self._family.latent_shape(self._resolution, self._resolution)
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

    def _encode(self) -> list[_Measured]:
        """Encode this process's share of the images."""
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
            _Measured(number, moments[view.key], conditioning | self._family.place(view.geometry), tokens)
            for (number, view), (conditioning, tokens) in zip(readable.items(), captions, strict=True)
        ]

    def _view(self, sample: int) -> View | None:
        square = (self._resolution, self._resolution)
        try:
            return self._images.view(sample, target=square, center_crop=True)
        except UnreadableImage as error:
            self._unreadable.add(sample, error)
            return None

    def _is_missing(self, view: View, moments: dict[str, Tensors]) -> bool:
        return view.key not in moments and view.sample not in self._unreadable

    def _caption(self, sample: int) -> str:
        return with_trigger(self._dataset.captions(sample)[0], self._trigger_word)


class HeldOutCurve:
    """Measures the held-out loss of a training after the steps where it is due, and keeps its rows."""

    def __init__(
        self,
        loss: HeldOutLoss | None,
        rows: list[Row],
        *,
        curve: str | None,
        step_range: StepRange,
        interval: int | None,
        outcome: Outcome,
    ) -> None:
        """
        Args:
            loss: what to measure; None where the task holds nothing out.
            rows: the chain's so far, to which this adds.
            curve: what the rows that can be compared have in common.
            interval: of steps; None measures at the ends of the task's steps alone.
            outcome: is told the latest loss and the best step.
        """
        self._loss = loss
        self._rows = rows
        self._curve = curve
        self._step_range = step_range
        self._interval = interval
        self._outcome = outcome
        self._tell()

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each held-out image that cannot be read."""
        return self._loss.skipped if self._loss else []

    def measure_if_due(self, step: int) -> Row | None:
        """Measure after this step, and add the row; None where nothing is due.

        All of a job's processes come here after the same steps; each measures its share.

        Raises:
            DatasetError: none of the images is readable.
        """
        if self._loss is None or self._curve is None:
            return None
        if not held_out_rows.is_due(
            step, self._rows, curve=self._curve, step_range=self._step_range, interval=self._interval
        ):
            return None
        with self._outcome.clock.phase("evaluate"):
            row = held_out_rows.row_of(step, self._loss.measure(), self._curve)
        self._rows.append(row)
        self._tell()
        say(f"held-out loss after step {step}: {'not finite' if row.loss is None else format(row.loss, '.5f')}")
        return row

    def _tell(self) -> None:
        self._outcome.held_out_loss, self._outcome.best_step = held_out_rows.summary(self._rows, self._curve)

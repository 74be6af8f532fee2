"""The held-out loss: how well the denoiser predicts images that it is not trained on, measured the same each time.

Every image has its own timesteps, noise and posterior draw, addressed by its number alone: two measurements of a
training, in whichever of a chain's tasks, differ by the weights and nothing else. A measurement changes nothing that
is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from engine.core import rng
from engine.core.console import Meter, say
from engine.job.context import RunContext
from engine.job.start import Training
from engine.models.family import PRECISIONS, Batch, Tensors, autocast
from engine.models.objectives.objective import LossOptions
from engine.results import held_out_rows
from engine.results.held_out_rows import Row
from engine.task.plan.steps import StepRange, validation_interval
from engine.task.plan.visits import Visit, VisitStream
from engine.task.task import Task
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.visit_encoder import Example, VisitEncoder


class HeldOutLoss:
    """Measures the held-out loss of a training, where it is due; does nothing where the task holds nothing out."""

    def __init__(
        self, session: RunContext, training: Training, cache: EncodingCache, check_stop: Callable[[], None]
    ) -> None:
        """
        Args:
            cache: of encodings.
            check_stop: called between images; raises when the job is to stop.
        """
        self._session = session
        self._training = training
        self._cache = cache
        self._check_stop = check_stop
        self._encoder: VisitEncoder | None = None
        self._examples: list[Example] = []
        job = session.job
        self._curve = job.curve
        self._timesteps = job.timesteps
        self._interval = validation_interval(job.task.validation, job.step_range)
        self._tell()

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each held-out image that cannot be read."""
        return self._encoder.skipped if self._encoder else []

    def measure_if_due(self) -> Row | None:
        """Measure after the step that the training has reached, and add the row; None where nothing is due.

        All of a job's processes come here after the same steps; each measures its share.

        Raises:
            DatasetError: none of the images is readable.
        """
        job, rows, step = self._session.job, self._training.held_out_losses, self._training.trainer.step
        if self._curve is None:
            return None
        if not held_out_rows.is_due(step, rows, curve=self._curve, step_range=job.step_range, interval=self._interval):
            return None
        with self._session.outcome.clock.phase("evaluate"):
            row = held_out_rows.row_of(step, self._losses(), self._curve)
        rows.append(row)
        self._tell()
        say(f"held-out loss after step {step}: {'not finite' if row.loss is None else format(row.loss, '.5f')}")
        return row

    def _tell(self) -> None:
        outcome = self._session.outcome
        outcome.held_out_loss, outcome.best_step = held_out_rows.summary(self._training.held_out_losses, self._curve)

    def _losses(self) -> list[list[float]]:
        """Each readable image's losses at its timesteps, in the order of the images."""
        if self._encoder is None:
            self._encode()
        meter = Meter("held-out loss", "images", len(self._examples))
        own: list[tuple[int, list[float]]] = []
        try:
            for example in self._examples:
                self._check_stop()
                own.append((example.visit.number, list(self._losses_of(example))))
                meter.update(len(own))
        finally:
            meter.close()
        found = sorted(pair for pairs in self._session.processes.exchange(own) for pair in pairs)
        return [losses for _, losses in found]

    @torch.no_grad()
    def _losses_of(self, example: Example) -> Iterator[float]:
        """The mean squared error at each of the image's timesteps: one at a time, so that it is nobody else's too."""
        job, family, device = self._session.job, self._training.family, self._session.device
        number, seed = example.visit.number, job.task.seed
        resolution = job.task.train_args.resolution
        shape = family.latent_shape(resolution, resolution)
        conditioning = self._conditioning(example)
        for k, timestep in enumerate(held_out_rows.timesteps_of(number, self._timesteps, seed)):
            address = number * held_out_rows.STRATA + k
            posterior = torch.from_numpy(rng.normal(seed, "held-out posterior", address, shape))
            noise = torch.from_numpy(rng.normal(seed, "held-out noise", address, shape))
            batch = Batch(
                latents=family.sample_latents(example.moments, posterior).unsqueeze(0).to(device),
                noise=noise.unsqueeze(0).to(device),
                timesteps=torch.tensor([timestep], device=device),
                conditioning=conditioning,
            )
            yield family.loss(batch, LossOptions()).item()

    def _conditioning(self, example: Example) -> Tensors:
        """What was encoded ahead, and what trained text encoders make of the caption now; a batch of one."""
        device, dtype = self._session.device, PRECISIONS[self._session.job.task.mixed_precision]
        known = _batch_of_one(example.conditioning, device)
        if not example.tokens:
            return known
        # A context of its own: autocast's cache must not outlive a step.
        with autocast(device, dtype):
            return known | self._training.family.embed(_batch_of_one(example.tokens, device))

    def _encode(self) -> None:
        """Encode this process's share of the images; they stay in memory."""
        job = self._session.job
        assert job.held_out is not None
        images = job.held_out.images
        self._encoder = VisitEncoder(
            task=_as_they_are(job.task),
            dataset=images,
            stream=_EachOnce(
                seed=job.task.seed,
                num_rows=len(images),
                random_flip=False,
                num_train_timesteps=job.base.num_train_timesteps,
            ),
            # One step of as many micro-batches as there are images, which are shared out as those of a training are.
            step_range=StepRange(
                num_rows=len(images),
                batch_size=1,
                micro_batches=len(images),
                start_step=0,
                stop_step=1,
                max_steps=1,
            ),
            family=self._training.family,
            cache=self._cache,
            device=self._session.device,
            check_stop=self._check_stop,
            report=lambda line: say(f"held out: {line}"),
            processes=self._session.processes,
            what="validation.dataset",
        )
        shown = self._encoder.examples(0)
        # What is shown in an unreadable image's place is measured in its own.
        self._examples = [example for example in shown if self._encoder.is_readable(example.visit.sample)]


class _EachOnce(VisitStream):
    """Each image once, with its first caption."""

    def visits(self, start: int, count: int) -> Iterator[Visit]:
        for visit in super().visits(start, count):
            yield replace(visit, caption_word=0)


def _as_they_are(task: Task) -> Task:
    """The task without what training does to images and captions to see more of them, and without masks."""
    return replace(
        task, dataset=task.dataset.as_measured, transforms=replace(task.transforms, center_crop=True, random_flip=False)
    )


def _batch_of_one(sample: Tensors, device: torch.device) -> Tensors:
    return {name: tensor.unsqueeze(0).to(device) for name, tensor in sample.items()}

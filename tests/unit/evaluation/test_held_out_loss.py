"""The held-out loss on a linear model: its definition, and that nothing but the weights and the images is in it."""

import copy
import math

import numpy as np
import pytest
import torch

from engine.core import rng
from engine.core.errors import DatasetError, Interrupted
from engine.core.process.environment import Place
from engine.data.media import image
from engine.data.media.geometry import geometry
from engine.data.media.image import IMAGE
from engine.data.media.video.clip import video_medium
from engine.evaluation.held_out_loss import HeldOutCurve, HeldOutLoss
from engine.results.held_out_rows import STRATA, timesteps_of
from engine.results.outcome import Outcome
from engine.task.plan.extent import Extent
from engine.task.plan.steps import StepRange
from engine.task.plan.timesteps import Timesteps
from engine.task.plan.visits import VisitStream
from engine.task.task import Dataset, Model, Task, TrainArgs, Transforms
from engine.training.distributed.processes import Processes
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.encoder_placement import EncoderPlacement
from tests.support.clips import clip_bytes
from tests.support.fakes import CPU, FakeDataset, LinearFamily, png

RESOLUTION = 8
SEED = 5
CURVE = "c" * 16


class Rank(Processes):
    """One of several processes, alone in the test; what it would exchange is kept."""

    def __init__(self, rank=0, world_size=1):
        super().__init__(Place(rank, world_size))
        self.exchanged = []

    def exchange(self, own):
        self.exchanged.append(copy.deepcopy(own))
        return [own]


class Setup:
    def __init__(
        self, tmp_path, images, *, texts=None, processes=None, interval=None, text_encoder=False, medium=IMAGE, **args
    ):
        dataset = {key: args.pop(key) for key in list(args) if key in Dataset.__dataclass_fields__}
        task = Task(
            model=Model(name="m"),
            dataset=Dataset(name="d", **dataset),
            train_args=TrainArgs(resolution=RESOLUTION, train_text_encoder=text_encoder, **args),
            transforms=Transforms(random_flip=True),
            seed=SEED,
        )
        self.family = LinearFamily()
        self.dataset = FakeDataset(images, texts)
        self.processes = processes or Rank()
        self.outcome, self.rows = Outcome(), []
        self.stops, self.on_stop = 0, lambda: None
        self.loss = HeldOutLoss(
            task,
            self.dataset,
            medium,
            timesteps=Timesteps(100, 900, (1.0,) * 800),
            target=self.target_of,
            family=self.family,
            cache=EncodingCache(tmp_path, {}, max_bytes=1 << 24),
            placement=EncoderPlacement(self.family, CPU),
            device=CPU,
            processes=self.processes,
            check_stop=self.count_stop,
        )
        self.curve = self.curve_of(self.loss, interval)

    def target_of(self, extent):
        """With buckets of 1 and 3 frames."""
        return Extent(RESOLUTION, RESOLUTION, 3 if extent.frames >= 3 else 1)

    def curve_of(self, loss, interval=None):
        return HeldOutCurve(
            loss,
            self.rows,
            curve=CURVE if loss else None,
            step_range=StepRange(num_rows=5, batch_size=1, micro_batches=1, start_step=0, stop_step=9, max_steps=9),
            interval=interval,
            outcome=self.outcome,
        )

    def count_stop(self):
        self.stops += 1
        self.on_stop()

    def at(self, step):
        return self.curve.measure_if_due(step)


def images(count=5):
    return [png(k, ((8, 8), (16, 8), (8, 12))[k % 3]) for k in range(count)]


def defined(setup, texts):
    """Each image's losses, straight from the definition, by the family's own arithmetic written out."""
    data = setup.dataset.images
    stream = VisitStream(seed=SEED, num_rows=len(data), random_flip=False, num_train_timesteps=1000)
    weight = setup.family.denoiser["to_q"].weight.detach().numpy().astype(np.float64)
    result = []
    for number, sample in enumerate(stream.order.permutation(0)):
        size = image.image_size(data[sample])
        view = geometry(size, target=(RESOLUTION, RESOLUTION), center_crop=True, crop_words=(0, 0), flip=False)
        mean = image.render(data[sample], view).reshape(-1)[:4].astype(np.float64) / 255
        states = setup.family.encode_caption(texts[sample])["states"].numpy()
        row = []
        for k, timestep in enumerate(timesteps_of(number, Timesteps(100, 900), SEED)):
            address = number * STRATA + k
            latents = mean + np.exp(0.5 * (mean - 3)) * rng.normal(SEED, "held-out posterior", address, (4,))
            noise = rng.normal(SEED, "held-out noise", address, (4,)).astype(np.float64)
            prediction = (latents + noise * (1 + timestep) / 1000) @ weight.T + 0.001 * states.mean()
            row.append(((prediction - noise) ** 2).mean())
        result.append(row)
    return np.array(result)


class TestDefinition:
    def test_is_the_mean_squared_error_at_addressed_timesteps_and_noise(self, tmp_path):
        texts = [(f"first {k}", "another") for k in range(5)]
        options = {"snr_gamma": 5.0, "noise_offset": 0.3, "loss_type": "huber", "caption_dropout": 1.0}
        setup = Setup(tmp_path, images(), texts=texts, trigger_word="sks", shuffle_tags=True, **options)
        row = setup.at(0)
        expected = defined(setup, [f"sks, first {k}" for k in range(5)])
        assert row.strata == pytest.approx(expected.mean(axis=0), rel=1e-5)
        assert row.loss == pytest.approx(expected.mean(), rel=1e-5)
        assert (row.step, row.images, row.curve) == (0, 5, CURVE)

    def test_clips_and_images_beside_them_are_measured_with_their_own_number_of_frames(self, tmp_path):
        clips = [clip_bytes(frames=5, size=(16, 16)), png(1, (16, 16)), clip_bytes(frames=2, size=(16, 16))]
        setup = Setup(tmp_path, clips, medium=video_medium(None))
        shapes = []
        encode = setup.family.encode_pixels
        setup.family.encode_pixels = lambda pixels: shapes.append(pixels.shape) or encode(pixels)
        setup.family.latent_shape = lambda extent: shapes.append(extent) or (4,)
        assert setup.at(0).images == 3 and setup.loss.skipped == []
        assert sorted(shape for shape in shapes if len(shape) == 4) == [(1, 8, 8, 3), (1, 8, 8, 3), (3, 8, 8, 3)]
        assert sorted(shape for shape in shapes if len(shape) == 3) == [(8, 8, 1), (8, 8, 1), (8, 8, 3)]

    def test_each_image_is_encoded_once_and_read_from_the_disk_later(self, tmp_path):
        setup = Setup(tmp_path, images(), interval=1)
        rows = [setup.at(step) for step in (0, 1, 2)]
        assert rows[0].loss == rows[1].loss == rows[2].loss  # the same weights
        assert len(setup.family.encoded_images) == 5
        assert setup.family.devices == [CPU, CPU]  # to the device and off it again, once
        again = Setup(tmp_path, images())
        assert again.at(0) == rows[0] and again.family.encoded_images == []

    def test_trained_text_encoders_are_asked_each_time(self, tmp_path):
        setup = Setup(tmp_path, images(), text_encoder=True, interval=1)
        plain = Setup(tmp_path / "other", images()).at(0)
        before = setup.at(0)
        assert before.loss == pytest.approx(plain.loss)  # as yet they are what encodes ahead
        with torch.no_grad():
            setup.family.text_encoders["text_encoder"].weight.mul_(100)
        assert setup.at(1).loss != before.loss

    def test_other_weights_have_another_loss(self, tmp_path):
        setup = Setup(tmp_path, images(), interval=1)
        before = setup.at(0)
        with torch.no_grad():
            setup.family.denoiser["to_q"].weight.mul_(0.5)
        assert setup.at(1).loss != before.loss

    def test_a_loss_that_is_not_finite_is_said(self, tmp_path):
        setup = Setup(tmp_path, images())
        setup.family.loss_factors = iter([1.0, math.nan])
        assert setup.at(0).loss is None
        assert (setup.outcome.held_out_loss, setup.outcome.best_step) == (None, None)


class TestNeighbours:
    def test_processes_share_the_images_and_their_losses_are_the_same(self, tmp_path):
        whole = Setup(tmp_path / "whole", images())
        row = whole.at(0)
        expected = whole.processes.exchanged[-1]
        for world_size in (2, 3, 7):
            shares = []
            for rank in range(world_size):
                one = Setup(tmp_path / f"{world_size}", images(), processes=Rank(rank, world_size))
                if rank < 5:
                    one.at(0)
                else:
                    assert one.loss.measure() == []  # nothing is left for it
                shares.append(one.processes.exchanged[-1])
            assert sorted(pair for share in shares for pair in share) == expected
            assert max(map(len, shares)) == -(-5 // world_size)
        assert row.images == 5

    def test_an_unreadable_image_is_left_out_and_told(self, tmp_path):
        broken = images()
        broken[1], broken[3] = None, broken[3][:90]
        setup, whole = Setup(tmp_path, broken), Setup(tmp_path / "whole", images())
        row = setup.at(0)
        whole.at(0)
        order = VisitStream(seed=SEED, num_rows=5, random_flip=False, num_train_timesteps=1000).order.permutation(0)
        left = [pair for pair in whole.processes.exchanged[-1] if order[pair[0]] not in (1, 3)]
        assert setup.processes.exchanged[-1] == left and row.images == 3
        assert sorted(name for name, _ in setup.curve.skipped) == ["image-1", "image-3"]

    @pytest.mark.parametrize(
        "count, expected",
        [
            (1, r"its only image, image-0, is not readable \(.+\); save it as PNG or JPEG, or take another"),
            (2, r"none of its 2 images is readable, such as image-\d \(.+\); save them as PNG or JPEG, or take others"),
        ],
    )
    def test_none_is_readable(self, tmp_path, count, expected):
        with pytest.raises(DatasetError, match=rf"^validation\.dataset: {expected}$"):
            Setup(tmp_path, [None] * count).at(0)


class TestWhen:
    def test_rows_are_kept_and_told(self, tmp_path):
        setup = Setup(tmp_path, images(2), interval=4)
        assert [step for step in range(10) if setup.at(step) is not None] == [0, 4, 8, 9]
        assert [row.step for row in setup.rows] == [0, 4, 8, 9]
        assert setup.at(4) is None  # there already
        outcome = setup.outcome
        assert outcome.held_out_loss == setup.rows[-1].loss and outcome.best_step == 0
        assert outcome.clock.seconds.keys() == {"evaluate"}

    def test_a_task_that_holds_nothing_out_measures_nothing(self, tmp_path):
        setup = Setup(tmp_path, images(2))
        setup.curve = setup.curve_of(None)
        assert setup.at(0) is None and setup.rows == [] and setup.processes.exchanged == []

    def test_a_stop_comes_between_two_images_and_leaves_no_row(self, tmp_path):
        setup = Setup(tmp_path, images())
        setup.at(0)
        assert setup.stops >= 5
        setup.rows.clear()

        def stop():
            raise Interrupted(15, "stopped")

        setup.on_stop = stop
        with pytest.raises(Interrupted):
            setup.at(0)
        assert setup.rows == []

    def test_no_gradient_is_left_behind(self, tmp_path):
        setup = Setup(tmp_path, images(2))
        weight = setup.family.denoiser["to_q"].weight.requires_grad_(True)
        before = weight.detach().clone()
        setup.at(0)
        assert weight.grad is None and torch.equal(weight, before)

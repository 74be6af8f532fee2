"""A medium of one file and one row: a dataset of it is opened, sorted into buckets, encoded and trained on."""

from dataclasses import replace

import numpy as np
import pytest

from engine.data.dataset.open import open_dataset
from engine.data.dataset.sizes import read_extents
from engine.data.media.registry import MEDIA, MediumRow
from engine.results.outcome import Clock
from engine.task.plan.visits import VisitStream
from engine.task.task import Dataset
from engine.training.buckets import BucketOrder, sort_into_buckets
from engine.training.distributed.processes import Processes
from engine.training.encoding.build import build_visit_encoder
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.trainer import train
from tests.support.fakes import CPU, LinearFamily, png
from tests.support.states import parse_state
from tests.support.toy_medium import CLIP, clip
from tests.unit.training.test_trainer import Run, make_task

SIZES = [(128, 128), (256, 64), (128, 128), (64, 256), (128, 128)]


class ClipFamily(LinearFamily):
    """Encodes the difference between the frames of a clip."""

    def encode_pixels(self, pixels):
        assert pixels.ndim == 4 and pixels.shape[0] == 2
        return super().encode_pixels(np.ascontiguousarray(pixels[0] - pixels[1]))


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setitem(MEDIA, "clip", MediumRow(CLIP.suffixes, lambda dataset: CLIP))
    folder = tmp_path / "data"
    folder.mkdir()
    for k, size in enumerate(SIZES):
        (folder / f"{k}.clip").write_bytes(clip(k, size))
        (folder / f"{k}.txt").write_text(f"clip {k}")
    (folder / "poster.png").write_bytes(png(1))
    said = []
    wanted = Dataset(name=str(folder))
    opened = open_dataset(wanted, CLIP, cache_dir=tmp_path, revision=None, report=said.append)
    assert len(opened) == 5 and opened.captions(3) == ("clip 3",)
    assert said == ["dataset: 1 other file is not used (1 .png): poster.png"]
    return opened


def trained(dataset, cache, *, start=0, stop=4, restore=None, workers=0):
    task = replace(make_task(resolution=128), dataloader_num_workers=workers)
    run = Run(task, start=start, stop=stop, restore=restore)
    buckets = sort_into_buckets(dataset, read_extents(dataset, CLIP, cache), 128)
    assert [one.extent.size for one in buckets.members] == [(64, 256), (128, 128), (256, 64)]
    family = ClipFamily()
    encoder = build_visit_encoder(
        task,
        dataset,
        CLIP,
        stream=VisitStream(
            seed=task.seed,
            num_rows=len(dataset),
            random_flip=True,
            num_train_timesteps=1000,
            order=BucketOrder(seed=task.seed, members=buckets.members, batch_size=2),
        ),
        step_range=run.step_range,
        family=family,
        cache=EncodingCache(cache, {}, max_bytes=1 << 24),
        placement=EncoderPlacement(family, CPU),
        processes=Processes(),
        check_stop=lambda: None,
        say=pytest.fail,
    )
    train(run.trainer, run.step_range, encoder.examples, run.reports.append, Clock(), at_hand=encoder.at_hand)
    return run


def test_a_chain_has_the_bytes_of_one_training_whoever_renders(dataset, tmp_path):
    whole = trained(dataset, tmp_path / "a")
    first = trained(dataset, tmp_path / "b", stop=2, workers=1)
    second = trained(dataset, tmp_path / "b", start=2, restore=parse_state(*first.bytes()))
    assert second.bytes() == whole.bytes() != first.bytes()
    assert first.reports + second.reports == whole.reports

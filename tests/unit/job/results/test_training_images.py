"""Some of the dataset's images for the report: small, as they are cropped, with their captions."""

import io
import threading
import time
from dataclasses import replace

import numpy as np
from PIL import Image

from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.data.media.video.clip import video_medium
from engine.job.results import training_images as module
from engine.job.results.training_images import training_images
from engine.models.families.sd.spec import SPEC
from engine.task.plan.extent import Extent
from engine.task.task import Dataset
from engine.training.buckets import sort_into_buckets
from tests.support.clips import make_clip, numbers
from tests.support.datasets import opened, write_images, write_jsonl
from tests.support.jobs import job_of, text
from tests.support.shard_server import OPEN, serving_shards
from tests.support.shards import shards


def save(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path)


def shown(tmp_path, given=None, buckets=None):
    dataset = opened(tmp_path, name=tmp_path / "images")
    return training_images(replace(job_of(given), dataset=dataset, buckets=buckets and buckets(dataset)))


def sizes(images):
    return [Image.open(io.BytesIO(image.jpeg)).size for image in images]


def test_at_most_eight_from_all_over_the_dataset(tmp_path):
    for k in range(20):
        save(tmp_path / "images" / f"{k:02}.png", (300, 200))
        (tmp_path / "images" / f"{k:02}.txt").write_text(f"number {k}")
    images = shown(tmp_path)
    assert [image.caption for image in images] == [f"number {k}" for k in (0, 2, 5, 7, 10, 12, 15, 17)]
    assert set(sizes(images)) == {(256, 256)} and all(len(image.jpeg) < 30_000 for image in images)


def test_with_the_trigger_word_and_without_what_cannot_be_read(tmp_path):
    folder = tmp_path / "images"
    names = write_images(folder)
    (folder / names[1]).write_bytes(b"no image")
    write_jsonl(folder / "metadata.jsonl", [{"file_name": name, "text": ["a cat", "b"]} for name in names])
    images = shown(tmp_path, text(dataset={"name": "d", "trigger_word": "sks"}))
    assert [(image.caption, image.other_captions) for image in images] == [("sks, a cat", 1)] * 2


def test_of_a_clip_the_middle_of_the_frames_that_are_shown(tmp_path):
    family = replace(SPEC, medium="video", frame_rate=25.0)
    (tmp_path / "clips").mkdir()
    make_clip(tmp_path / "clips/a.mkv", codec="ffv1", frames=20, size=(64, 64))
    (tmp_path / "clips/a.txt").write_text("squares")
    wanted = Dataset(name=str(tmp_path / "clips"))
    dataset = open_dataset(
        wanted, video_medium(None), cache_dir=tmp_path / "cache", revision=None, report=lambda line: None
    )
    job = job_of(text(train_args={"num_frames": 9, "resolution": 64}), family=family)
    (image,) = training_images(replace(job, dataset=dataset))
    assert numbers(np.asarray(Image.open(io.BytesIO(image.jpeg)))[None]) == [4]
    assert image.caption == "squares"


def test_in_the_shape_of_their_bucket(tmp_path):
    save(tmp_path / "images" / "wide.png", (400, 200))
    (tmp_path / "images" / "wide.txt").write_text("x")
    (size,) = sizes(shown(tmp_path, buckets=lambda dataset: sort_into_buckets(dataset, [Extent(400, 200)], 512)))
    assert size == (256, 116)  # as 704 x 320, the bucket nearest to 2 : 1


def test_a_server_that_stalls_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 60)
    opens = threading.Event()
    with serving_shards(shards(1, 8)) as server:
        wanted, limits = Dataset(url=server.url("t-{000..000}.tar")), replace(OPEN, max_cache_bytes=0)
        places = {"cache_dir": tmp_path, "revision": None, "report": lambda line: None, "limits": limits}
        dataset = open_dataset(wanted, IMAGE, **places)
        assert len(training_images(replace(job_of(), dataset=dataset))) == 8
        monkeypatch.setattr(module, "_SECONDS", 0.3)
        server.answer = lambda handler: not opens.wait(20)
        begun = time.monotonic()
        assert not training_images(replace(job_of(), dataset=dataset))
        assert time.monotonic() - begun < 10
        threading.Timer(0.8, opens.set).start()
        assert dataset.image_bytes(0)  # for which the server is waited for

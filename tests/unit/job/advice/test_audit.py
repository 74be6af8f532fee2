"""The lines about a dataset that --plan prints."""

import io
import itertools
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from PIL import Image

from engine.core.errors import DatasetError
from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.data.media.video.clip import video_medium
from engine.job.advice import audit
from engine.models.families.sd.spec import SPEC
from engine.task.plan.extent import Extent
from engine.task.task import Dataset, Model, Task, TrainArgs
from tests.support import tiny
from tests.support.caption_folders import write
from tests.support.clips import make_clip
from tests.support.fakes import png
from tests.support.shard_server import OPEN, serving_shards
from tests.support.shards import shards


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.build_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def job_of(model, tmp_path, files, **dataset):
    folder = write(tmp_path / "data", files)
    task = Task(
        model=Model(name="m"), dataset=Dataset(name=str(folder), **dataset), train_args=TrainArgs(resolution=64)
    )
    opened = open_dataset(task.dataset, IMAGE, cache_dir=tmp_path, revision=None, report=lambda line: None)
    base = SimpleNamespace(folder=model, single_file=None, elsewhere={}, family=SPEC)
    return SimpleNamespace(
        task=task,
        dataset=opened,
        medium=IMAGE,
        base=base,
        buckets=None,
        held_out=None,
        measured_at=lambda extent: task.train_args.extent,
        caption_tokens=SPEC.caption_tokens.of(task.dataset),
    )


FILES = {
    "a.png": png(1, (64, 96)),
    "a.txt": "x " * 200,
    "b.png": png(2, (32, 48)),
    "b.txt": "short",
    "c.png": png(1, (64, 96)),
    "c.caption": "another caption of the same image",
    "d.png": png(3, (640, 480))[:-40],
    "d.txt": "broken",
    "3_sks/e.png": png(4, (200, 100)),
    "f.png": png(5, (64, 64)),
}


def test_says_what_there_is(model, tmp_path):
    *lines, unreadable = audit.audit(job_of(model, tmp_path, FILES))
    assert lines == [
        "captions       1 from the folder's name, 3 from a .txt file beside the image, "
        "1 from a .caption file beside the image, 1 without caption",
        "tokens         longest caption 200 (a.png), 1 of 6 is cut at 75, 1 is empty",
        "sizes          32 x 48 to 200 x 100, 1 is enlarged",
        "duplicates     1: c.png = a.png",
    ]
    assert unreadable.startswith("unreadable     1: d.png (")


def test_captions_count_as_they_are_trained(model, tmp_path):
    job = job_of(model, tmp_path, {"a.png": png(1), "a.txt": "x " * 75, "b.png": png(2)}, trigger_word="sks")
    lines = audit.audit(job)
    assert "longest caption 79 (a.png), 1 of 2 is cut at 75" in lines[1]
    assert "empty" not in lines[1]


@pytest.mark.parametrize("limit, cut", [(75, "2 of 2 are"), (150, "1 of 2 is"), (225, "none is")])
def test_captions_are_cut_where_the_task_says(model, tmp_path, limit, cut):
    files = {"a.png": png(1), "a.txt": "x " * 150, "b.png": png(2), "b.txt": "x " * 151}
    (line,) = [
        line for line in audit.audit(job_of(model, tmp_path, files, max_caption_tokens=limit)) if "longest" in line
    ]
    assert line.endswith(f"{cut} cut at {limit}")


def test_captions_are_counted_of_what_is_trained_on(model, tmp_path):
    """Images that are held out are gone; those of one folder alone are not counted instead of all."""
    job = job_of(model, tmp_path, FILES)
    job.dataset = job.dataset.picked([0, 1, 5])
    assert audit.audit(job)[0] == (
        "captions       1 from the folder's name, 1 from a .txt file beside the image, 1 without caption"
    )


def with_masks(model, tmp_path, masks):
    rows = [{"file_name": f"{k}.png", "text": "x"} | ({"mask": f"m/{k}.png"} if k in masks else {}) for k in range(3)]
    files = {f"{k}.png": png(k, (40, 20)) for k in range(3)} | {f"m/{k}.png": data for k, data in masks.items() if data}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return job_of(model, tmp_path, files | {"metadata.jsonl": text}, mask_column="mask")


def test_masks_that_training_would_refuse_are_named(model, tmp_path):
    lines = audit.audit(with_masks(model, tmp_path / "some", {0: png(5, (80, 40)), 1: png(5, (9, 9))}))
    assert lines[-2:] == [
        "unreadable     1: 1.png (its mask has another aspect ratio (9 x 9 pixels))",
        "masks          1 of 2 images",
    ]
    lines = audit.audit(with_masks(model, tmp_path / "broken", {0: b"x", 1: None}))
    assert "0.png (its mask cannot be read: it is not a readable" in lines[-2]
    assert "1.png (its mask cannot be read: No such file" in lines[-2]


def test_an_alpha_channel_that_is_not_there_is_told(model, tmp_path):
    files = {"a.png": png(1), "a.txt": "x"}
    assert audit.audit(job_of(model, tmp_path, files, alpha_mask=True))[-1] == (
        "masks          no image has a mask: all of each image counts"
    )
    assert not any("masks" in line for line in audit.audit(job_of(model, tmp_path, files)))


def test_time_is_bounded_and_what_was_not_seen_is_said(model, tmp_path):
    files = {f"{k}.png": png(k) for k in range(30)} | {f"{k}.txt": f"{k}" for k in range(30)}
    job = job_of(model, tmp_path, files)
    ticks = iter(range(10_000))
    lines = audit.audit(job, seconds=7.5, clock=lambda: next(ticks))
    assert all("in a sample of 8 of 30 images" in line for line in lines[1:])
    again = iter(range(10_000))
    assert audit.audit(job, seconds=7.5, clock=lambda: next(again)) == lines
    assert not any("sample" in line for line in audit.audit(job))


def test_one_image_is_looked_at_however_late_it_is(model, tmp_path):
    lines = audit.audit(job_of(model, tmp_path, {"a.png": png(1), "a.txt": "x"}), seconds=0.0)
    assert "none is cut at 75" in lines[1] and "sample" not in lines[1]


def test_repeats_are_looked_at_once(model, tmp_path):
    job = job_of(model, tmp_path, {"100_x/a.png": png(1), "100_x/b.png": png(2)})
    seen = audit.look_at_images(job.dataset, IMAGE, lambda extent: Extent(64, 64), 10, lambda: 0.0)
    assert seen.num_seen == 2 and seen.duplicates == [] and seen.unreadable == []


def test_a_shape_that_training_would_refuse_is_unreadable(model, tmp_path):
    job = job_of(model, tmp_path, {"a.png": png(1, (1, 20_000)), "a.txt": "x"})
    seen = audit.look_at_images(job.dataset, IMAGE, lambda extent: Extent(4096, 4096), 10, lambda: 0.0)
    assert seen.unreadable[0][0] == "a.png"


def test_images_that_are_held_out_and_trained_on_are_named(model, tmp_path):
    job = job_of(model, tmp_path, FILES)
    others = {"x.png": png(4, (200, 100)), "x.txt": "x", "y.png": png(9), "y.txt": "y", "z.png": b"", "z.txt": "z"}
    job.held_out = SimpleNamespace(images=job_of(model, tmp_path / "held-out", others).dataset)
    assert audit.audit(job)[-1] == "also held out  1: 3_sks/e.png"
    job.held_out = SimpleNamespace(images=job_of(model, tmp_path / "none", {"y.png": png(9), "y.txt": "y"}).dataset)
    assert audit.audit(job)[-1] == "also held out  none"


def test_images_of_which_none_is_readable_are_refused(model, tmp_path):
    """As the job would."""
    broken = {"x.png": b"", "x.txt": "x", "y.png": png(9)[:40], "y.txt": "y"}
    with pytest.raises(DatasetError, match=r"^the dataset: none of its 2 images is readable, such as .*; save them"):
        audit.audit(job_of(model, tmp_path / "all", broken))
    job = job_of(model, tmp_path, FILES)
    job.held_out = SimpleNamespace(images=job_of(model, tmp_path / "held-out", broken).dataset)
    with pytest.raises(DatasetError, match=r"^validation\.dataset: none of its 2 images is readable, such as .*; save"):
        audit.audit(job)
    job.held_out.images = job_of(model, tmp_path / "some", broken | {"z.png": png(3), "z.txt": "z"}).dataset
    assert any(line.startswith("not measured   2: ") for line in audit.audit(job))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_images_of_several_frames_are_named(model, tmp_path, kind):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]
    files = {}
    for name, more in {"many": frames[1:], "one": []}.items():
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=more)
        files |= {f"{name}.{kind.lower()}": stream.getvalue(), f"{name}.txt": "a caption"}
    told = [line for line in audit.audit(job_of(model, tmp_path, files)) if line.startswith("several frames ")]
    assert told == [f"several frames 1: many.{kind.lower()}; only the first of each is trained on"]


def test_held_out_shards_are_compared_without_a_request(tmp_path):
    with serving_shards(shards(2)) as server:
        places = {"cache_dir": tmp_path, "revision": None, "report": lambda line: None}
        limits = replace(OPEN, max_cache_bytes=0)
        dataset = open_dataset(Dataset(url=server.url("t-{000..001}.tar")), IMAGE, limits=limits, **places)
        server.requests.clear()
        found = audit.look_for_held_out(dataset, dataset.picked([1, 6]), 60, lambda: 0)
    assert (found[0], sorted(found[1])) == (8, ["t-000.tar/s/0001.png", "t-001.tar/s/0006.png"])
    assert not server.requests


def test_held_out_clips_with_too_few_frames_are_not_measured(tmp_path):
    folder = write(tmp_path / "data", {"a.txt": "x", "b.txt": "y"})
    for name, frames in (("a.mkv", 17), ("b.mkv", 5)):
        make_clip(folder / name, codec="ffv1", frames=frames)
    medium = video_medium(None)
    wanted = Dataset(name=str(folder))
    dataset = open_dataset(wanted, medium, cache_dir=tmp_path / "cache", revision=None, report=lambda line: None)
    target = partial(audit._measured, SimpleNamespace(measured_at=lambda extent: Extent(64, 48, 17)))
    seen = audit.look_at_images(dataset, medium, target, 10, lambda: 0.0)
    assert seen.unreadable == [("b.mkv", "it has 5 frames, fewer than the 17 of train_args.num_frames")]


def test_a_long_clip_is_left_when_the_time_is_up(tmp_path):
    """The clock goes on by one at each look, of which each frame takes one."""
    folder = write(tmp_path / "data", {"a.txt": "x"})
    make_clip(folder / "a.mkv", codec="ffv1", frames=17)
    wanted, medium = Dataset(name=str(folder)), video_medium(None)
    dataset = open_dataset(wanted, medium, cache_dir=tmp_path / "cache", revision=None, report=lambda line: None)

    def looks(seconds):
        times = itertools.count()
        seen = audit.look_at_images(dataset, medium, lambda extent: extent, seconds, lambda: next(times))
        assert (seen.num_seen, seen.sizes, seen.unreadable) == (1, [(64, 48)], [])
        return next(times)

    assert looks(3) < 8 and looks(100) > 17

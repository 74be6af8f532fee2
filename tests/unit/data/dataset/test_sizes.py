"""The sizes of a dataset's images: read once, whatever becomes of the note of them."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from engine.core.errors import DatasetError
from engine.data.dataset.open import open_dataset
from engine.data.dataset.sizes import extents_of, read_clips, read_extents
from engine.data.media.image import IMAGE
from engine.data.media.video.clip import video_medium
from engine.task.task import Dataset
from tests.support.caption_folders import write
from tests.support.clips import clip_bytes
from tests.support.fakes import png


def turned():
    """A lying picture that EXIF stands up."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


FILES = {
    "a.png": png(0, (100, 100)),
    "b.png": png(1, (200, 100)),
    "c.png": b"no image",
    "d.png": png(3, (400, 200)),
    "e.png": turned(),
    "f.png": png(5, (1, 40_000)),
    "g.png": png(6, (205, 100)),
    "h.png": png(7, (60, 60))[:-20],
}


def dataset_of(tmp_path, files=FILES, repeats=1):
    folder = write(tmp_path / "data", {name.replace("png", "txt"): "a" for name in files} | files)
    wanted = Dataset(name=str(folder), repeats=repeats)
    return open_dataset(wanted, IMAGE, cache_dir=tmp_path, revision=None, report=lambda line: None)


def test_sizes_are_read_once(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path)
    first = read_extents(dataset, IMAGE, tmp_path / "cache")
    assert first[1] == (200, 100, 1) and first[2] == (0, 0, 0) and first[4] == (100, 200, 1)
    unread = replace(IMAGE, measure=None)
    assert read_extents(dataset, unread, tmp_path / "cache") == first


def test_facts_about_clips_are_read_once(tmp_path):
    clips = {"a.mp4": clip_bytes(frames=9, rate=24), "b.mkv": b"no clip", "c.png": png(0, (60, 40))}
    folder = write(tmp_path / "data", {f"{name[0]}.txt": "x" for name in clips} | clips)
    medium, wanted = video_medium(12), Dataset(name=str(folder))
    dataset = open_dataset(wanted, medium, cache_dir=tmp_path, revision=None, report=lambda line: None)
    first = read_clips(dataset, medium, medium.read_facts, tmp_path / "cache")
    clip, broken, still = first
    assert (clip.extent, clip.file_frames, clip.file_rate, clip.codec) == ((64, 48, 5), 9, 24, "H.264")
    assert broken.startswith("it is neither a video") and still.is_still and still.extent == (60, 40, 1)
    assert extents_of(first) == [clip.extent, (0, 0, 0), still.extent] == read_extents(dataset, medium, tmp_path)
    assert read_clips(dataset, medium, None, tmp_path / "cache") == first
    for path in (tmp_path / "cache/sizes").iterdir():
        path.write_bytes(b"damaged")
    assert read_clips(dataset, medium, medium.read_facts, tmp_path / "cache") == first
    other = video_medium(None)
    assert read_clips(dataset, other, other.read_facts, tmp_path / "cache")[0].frames == 9


def test_a_file_that_is_out_of_reach_may_come_back(tmp_path):
    """Not under a job, but for the next one: a file that is missing is part of the fingerprint."""
    rows = "".join(f'{{"file_name": "{name}", "text": ""}}\n' for name in ("a.png", "b.png"))
    files = {name: FILES[name] for name in ("a.png", "b.png")} | {"metadata.jsonl": rows}
    whole, cache = dataset_of(tmp_path, files), tmp_path / "cache"
    there, away = tmp_path / "data" / "b.png", tmp_path / "away"
    there.rename(away)
    with pytest.raises(DatasetError, match=r"^b\.png has changed since the job began"):
        read_extents(whole, IMAGE, cache)
    wanted = Dataset(name=str(tmp_path / "data"))

    def sizes():
        return read_extents(
            open_dataset(wanted, IMAGE, cache_dir=tmp_path, revision=None, report=lambda line: None), IMAGE, cache
        )

    assert sizes() == sizes() == [(100, 100, 1), (0, 0, 0)]
    away.rename(there)
    assert sizes() == [(100, 100, 1), (200, 100, 1)]


def test_other_images_of_one_dataset_have_sizes_of_their_own(tmp_path):
    """Of as many, held out by another seed."""
    dataset, cache = dataset_of(tmp_path), tmp_path / "cache"
    every = read_extents(dataset, IMAGE, cache)
    for images in ([0, 1], [3, 4]):
        assert read_extents(dataset.picked(images), IMAGE, cache) == [every[image] for image in images]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "folder", "foreign"])
def test_a_damaged_note_is_written_anew(tmp_path, harm):
    dataset, cache = dataset_of(tmp_path), tmp_path / "cache"
    first = read_extents(dataset, IMAGE, cache)
    (note,) = (cache / "sizes").iterdir()
    data = note.read_bytes()
    other = replace(dataset, fingerprint="0" * 64)
    if harm == "folder":
        note.unlink()
        note.mkdir()
    elif harm == "foreign":
        read_extents(other, IMAGE, tmp_path / "elsewhere")
        (foreign,) = (tmp_path / "elsewhere" / "sizes").iterdir()
        note.write_bytes(foreign.read_bytes())
    else:
        note.write_bytes({"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-8], "empty": b""}[harm])
    assert read_extents(dataset, IMAGE, cache) == first
    if harm != "folder":
        assert note.read_bytes() == data


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert len(read_extents(dataset_of(tmp_path), IMAGE, tmp_path / "cache")) == 8

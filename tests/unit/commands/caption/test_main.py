"""Captions for a folder, by a tiny random BLIP; never over what is there but by option."""

import os
import re

import numpy as np
import pytest

from engine.commands.caption import main
from engine.core.errors import DatasetError, ModelError, OutputError, TaskError
from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
from tests.support.caption_folders import write
from tests.support.clips import make_clip, numbers
from tests.support.fakes import png
from tests.support.tiny_captioners import build_blip


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return build_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def folder(tmp_path):
    files = {f"sub/{k}.png": png(k, (40, 30)) for k in range(3)} | {"a.png": png(9), "b.jpg": b"broken"}
    return write(tmp_path / "images", files)


def run(folder, blip, *flags):
    return main.main([str(folder), "--model", str(blip), "--device", "cpu", "--max-tokens", "8", *flags], {})


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.txt"))}


def test_writes_a_caption_beside_each_image_and_nothing_over_another(folder, blip, capfd):
    write(folder, {"sub/0.txt": "by hand", "sub/1.caption": "", "notes.txt": "mine"})
    assert run(folder, blip) == 0
    found = texts(folder)
    assert sorted(found) == ["a.txt", "notes.txt", "sub/0.txt", "sub/2.txt"]
    assert found["sub/0.txt"] == "by hand" and found["notes.txt"] == "mine"
    assert found["a.txt"].startswith("word") and found["a.txt"].endswith("\n")
    said = capfd.readouterr().err
    assert "skipping b.jpg" in said and "captioning: 3/3 files" in said and "wrote 2 captions" in said
    (folder / "b.jpg").unlink()
    before = texts(folder)
    assert run(folder, blip) == 0 and texts(folder) == before
    assert "nothing to do" in capfd.readouterr().err


def test_of_a_clip_the_middle_frame_is_described(tmp_path, monkeypatch):
    make_clip(tmp_path / "a.mkv", codec="ffv1", frames=9)
    write(tmp_path, {"b.png": png(1, (40, 30)), "c.mp4": b"broken"})
    seen, written = [], {}
    images = main.find_images(tmp_path, overwrite=False)
    main.caption_all(tmp_path, images, lambda picture: seen.append(picture) or "x", written.setdefault)
    assert [picture.size for picture in seen] == [(64, 48), (40, 30)]
    assert numbers(np.asarray(seen[0])[None]) == [4]
    assert sorted(path.name for path in written) == ["a.mkv", "b.png"]


def test_the_result_is_a_dataset_and_the_same_each_time(folder, blip, tmp_path):
    (folder / "b.jpg").unlink()
    assert run(folder, blip) == 0
    wanted = Dataset(name=str(folder))
    dataset = open_dataset(wanted, IMAGE, cache_dir=tmp_path, revision=None, report=lambda line: None)
    assert dataset.caption_rules == {"a .txt file beside the image": 4}
    first = texts(folder)
    for name in first:
        (folder / name).unlink()
    assert run(folder, blip) == 0 and texts(folder) == first
    assert len(set(first.values())) > 1  # it looks at the image


def test_a_prompt_begins_every_caption(folder, blip):
    assert run(folder, blip, "--prompt", "word7 word8") == 0
    assert all(text.startswith("word7 word8") for text in texts(folder).values())


def test_a_caption_that_came_in_the_meantime_or_a_link_stays(folder, tmp_path):
    outside = write(tmp_path, {"outside.txt": "not ours"}) / "outside.txt"
    (folder / "a.txt").symlink_to(outside)
    assert main.write_caption(folder / "a.png", "new", overwrite=False) is False and outside.read_text() == "not ours"
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(tmp_path / "nowhere.txt")
    assert (
        main.write_caption(folder / "a.png", "new", overwrite=False) is False
        and not (tmp_path / "nowhere.txt").exists()
    )
    assert main.write_caption(folder / "sub/0.png", " grün\0\x1b ", overwrite=False) is True
    assert (folder / "sub/0.txt").read_bytes() == "grün\n".encode()
    assert sorted(path.name for path in (folder / "sub").iterdir()) == ["0.png", "0.txt", "1.png", "2.png"]


def test_a_full_disk_leaves_no_caption(folder, monkeypatch):
    def refuse(path, data):
        path.write_bytes(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.core.files.atomic_files.write_new", refuse)
    with pytest.raises(OutputError, match="the disk is full"):
        main.write_caption(folder / "a.png", "new", overwrite=False)
    assert not list(folder.glob("*.t*"))


def test_overwrite_replaces_every_caption_and_never_writes_through_a_link(folder, blip, tmp_path):
    outside = write(tmp_path, {"outside.txt": "not ours"}) / "outside.txt"
    write(folder, {"sub/0.txt": "by hand", "sub/1.caption": "by hand"})
    (folder / "a.txt").symlink_to(outside)
    assert run(folder, blip, "--overwrite", "--prefix", "sks cat, ", "--suffix", ", photo") == 0
    found = texts(folder)
    assert sorted(found) == ["a.txt", "sub/0.txt", "sub/1.txt", "sub/2.txt"]
    assert all(text.startswith("sks cat, word") and text.endswith(", photo\n") for text in found.values())
    assert outside.read_text() == "not ours"


def test_images_that_share_a_caption_file_are_described_once(folder, blip, capfd):
    (folder / "a.webp").write_bytes(png(5))
    assert run(folder, blip, "--overwrite") == 0
    assert "wrote 4 captions" in capfd.readouterr().err


def test_limit_leaves_the_rest_for_the_next_run(folder, blip, capfd):
    (folder / "b.jpg").unlink()
    assert run(folder, blip, "--limit", "3") == 0
    assert len(texts(folder)) == 3 and "1 file is left, because of --limit" in capfd.readouterr().err
    assert run(folder, blip, "--limit", "3") == 0
    assert len(texts(folder)) == 4 and "left" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max-tokens", "0"], "--max-tokens is 0"),
        (["--limit", "-1"], "--limit is -1"),
        (["--threshold", "1"], "--threshold is 1.0"),
        (["--threshold", "nan"], "--threshold is nan"),
        (["--prefix", "two\nlines"], "--prefix is"),
        (["--threshold", "0.5"], "--threshold: .* is a caption model, which has no such option"),
        (["--exclude-tags", "1girl"], "--exclude-tags: .* is a caption model"),
    ],
)
def test_options_that_cannot_be_meant(folder, blip, flags, message, capfd):
    assert run(folder, blip, *flags) == TaskError.code
    assert re.search(message, capfd.readouterr().err) and texts(folder) == {}


@pytest.mark.parametrize("name", ["no/such-captioner", "./nowhere"])
def test_a_model_that_is_not_at_hand_is_refused_clearly(folder, name, capfd, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(folder, name) == ModelError.code
    said = capfd.readouterr().err
    assert f"captioner {name!r} cannot be loaded" in said and "--model" in said and "Traceback" not in said
    assert texts(folder) == {}


def test_a_model_that_is_no_captioner(folder, tmp_path, capfd):
    write(tmp_path / "bert", {"config.json": '{"model_type": "bert"}'})
    assert run(folder, tmp_path / "bert") == ModelError.code
    assert "is a 'bert': expected a tagger or a model" in capfd.readouterr().err


def test_a_model_without_weights(folder, blip, tmp_path, capfd):
    bare = write(tmp_path / "bare", {path.name: path.read_bytes() for path in blip.iterdir() if path.suffix == ".json"})
    (bare / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    assert run(folder, bare) == ModelError.code
    assert "cannot be loaded" in capfd.readouterr().err


def test_folders_that_need_no_captions(tmp_path, blip):
    for name, files, message in (
        ("nothing", {"x.txt": ""}, "no images"),
        ("table", {"a.png": png(1), "metadata.jsonl": "{}"}, r"metadata\.jsonl already gives the captions"),
    ):
        with pytest.raises(DatasetError, match=message):
            main.find_images(write(tmp_path / name, files), overwrite=True)
    with pytest.raises(DatasetError, match="not a folder"):
        main.find_images(tmp_path / "nowhere", overwrite=False)
    assert run(tmp_path / "nowhere", blip) == DatasetError.code


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(folder, blip):
    (folder / "sub").chmod(0o555)
    assert run(folder, blip) == 7

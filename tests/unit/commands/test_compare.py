"""How far apart two results are: files that are no LoRA, and pictures."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from safetensors.numpy import save

from engine.commands.compare import compare, main
from engine.commands.diffs.picture_diff import hamming
from engine.core.errors import CheckpointError
from tests.support.clips import make_clip


def lora(rank=3, *, scale=1.0, modules=("unet.a", "unet.b"), seed=0):
    own = np.random.default_rng(seed)
    found = {}
    for module in modules:
        found[f"{module}.lora_A.weight"] = own.standard_normal((rank, 8)).astype(np.float32)
        found[f"{module}.lora_B.weight"] = scale * own.standard_normal((5, rank)).astype(np.float32)
    return found


def write(folder, tensors):
    folder.mkdir(parents=True)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(save(tensors))
    return folder


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"unet.a.lora_A.weight": np.zeros((2, 3), np.float32)},
        {"unet.a.lora_A.weight": np.zeros((2, 3), np.float32), "unet.a.lora_B.weight": np.zeros((3, 4), np.float32)},
        {"unet.a.lora_A.weight": np.zeros((0, 3), np.float32), "unet.a.lora_B.weight": np.zeros((3, 0), np.float32)},
        lora() | {"unet.a.lora_A.weight": np.full((3, 8), np.nan, np.float32)},
    ],
    ids=["empty", "half", "shapes", "no rank", "nan"],
)
def test_a_strangers_file_is_refused(tensors, tmp_path, capsys):
    assert main([str(write(tmp_path / "one", tensors)), str(write(tmp_path / "two", lora()))], {}) == 5
    assert capsys.readouterr().err.startswith("error: ")


def test_what_is_no_file_is_refused(tmp_path, capsys):
    good = write(tmp_path / "good", lora())
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "pytorch_lora_weights.safetensors").symlink_to(good / "pytorch_lora_weights.safetensors")
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "pytorch_lora_weights.safetensors").write_bytes(b"\xff" * 100)
    other = write(tmp_path / "other model", {name: value[..., :4] for name, value in lora(4).items()})
    for folder in (tmp_path / "nowhere", tmp_path / "link", tmp_path / "noise", other):
        assert main([str(folder), str(good)], {}) == 5
    assert capsys.readouterr().err.count("error: ") == 4


class TestImages:
    @pytest.fixture
    def picture(self):
        pytest.importorskip("imagehash", reason="requirements-compare.txt")
        pixels = np.random.default_rng(3).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)

    @staticmethod
    def png(picture):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    def test_like_pictures_are_near_and_others_far(self, picture):
        near = picture.filter(ImageFilter.GaussianBlur(0.5))
        far = picture.transpose(Image.Transpose.ROTATE_90)
        assert hamming(self.png(picture), self.png(picture)) == 0
        assert hamming(self.png(picture), self.png(near)) <= 6
        assert 16 <= hamming(self.png(picture), self.png(far)) <= 48

    @pytest.mark.parametrize("data", [b"", b"no image"])
    def test_what_is_no_picture(self, picture, data):
        with pytest.raises(CheckpointError, match="a validation image cannot be read"):
            hamming(data, self.png(picture))

    def test_a_result_with_pictures(self, picture, tmp_path):
        folders = [write(tmp_path / name, lora()) for name in ("one", "two")]
        for folder in folders:
            (folder / "validation").mkdir()
            (folder / "validation" / "0.png").write_bytes(self.png(picture))
        assert "images   0.png: 0 of 64 bits of the perceptual hash differ" in compare(*folders)

    def test_a_result_with_clips(self, tmp_path):
        def folder(name, **how):
            found = write(tmp_path / name, lora())
            (found / "validation").mkdir()
            make_clip(found / "validation" / "0.mp4", codec="av1", **how)
            return found

        same, again = folder("same", frames=9), folder("again", frames=9)
        other, longer = folder("other", frames=9, first=100), folder("longer", frames=10)
        line = "clips    0.mp4: in 9 frames, 0.0 of 64 bits of the perceptual hash differ on average, 0 at most"
        assert line in compare(same, again)
        (found,) = (line for line in compare(same, other) if line.startswith("clips"))
        assert float(found.split()[5]) > 1
        line = "clips    0.mp4: they have different numbers of frames; the first 9 are in both"
        assert line in compare(same, longer)
        (again / "validation" / "0.mp4").write_bytes(b"no clip")
        with pytest.raises(CheckpointError, match="a validation clip cannot be read"):
            compare(same, again)

"""Pixels: the arithmetic of resizing and cropping, every mode an image comes in, and what strangers send instead."""

import io
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.data.media.geometry import UnreadableImage, geometry
from engine.data.media.image import MAX_PIXELS, image_size, render, render_mask


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def shown(data: bytes, resolution: int | None = None, **options) -> np.ndarray:
    """The image as rendered; without a resolution, at its own size (it must be square)."""
    size = image_size(data)
    side = resolution or min(size)
    view = geometry(
        size,
        target=(side, side),
        **{"center_crop": True, "crop_words": (0, 0), "flip": False, **options},
    )
    return render(data, view)


def quadrants(width=32, height=32) -> Image.Image:
    """Red, green / blue, white: tells every flip and turn apart."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


def test_render_crops_what_the_geometry_says():
    gradient = np.zeros((64, 192, 3), np.uint8)
    gradient[:, :, 0] = np.arange(192)
    data = encoded(Image.fromarray(gradient))
    view = geometry((192, 64), target=(64, 64), center_crop=False, crop_words=(0, 2**63), flip=False)
    assert view.left == 64
    pixels = render(data, view)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels[:, :, 0], np.tile(np.arange(64, 128), (64, 1)))


def test_flip_mirrors_left_to_right():
    data = encoded(quadrants())
    np.testing.assert_array_equal(shown(data, flip=True), shown(data)[:, ::-1])


def test_reduction_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = shown(encoded(Image.fromarray(stripes)), 64)
    assert 120 <= pixels[8:-8, 8:-8].min() <= pixels[8:-8, 8:-8].max() <= 135


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format, orientation):
    upright = quadrants(48, 32)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that a viewer's correction takes back
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(format, {})
    data = encoded(stored, format, exif=exif, **lossless)
    assert image_size(data) == (48, 32)
    error = np.abs(shown(data, 32).astype(int) - shown(encoded(upright), 32))
    assert np.median(error) <= 2
    assert error.mean() < 6


def test_damaged_exif_is_ignored():
    data = encoded(quadrants(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(shown(data), np.asarray(quadrants()))


def transparent_palette(format="PNG", transparency=bytes([0, 255])) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 4, 8))
    return encoded(image, format, transparency=transparency)


def with_mode(mode: str, value, format="PNG", **options) -> bytes:
    return encoded(Image.new(mode, (8, 8), value), format, **options)


def grey16(value: int, format="PNG") -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), value, np.uint16)), format)


MODES = {
    "RGB": (with_mode("RGB", (10, 20, 30)), (10, 20, 30)),
    "L": (with_mode("L", 77), (77, 77, 77)),
    "1": (with_mode("1", 1), (255, 255, 255)),
    "RGBA clear": (with_mode("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
    "RGBA half": (with_mode("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
    "LA half": (with_mode("LA", (0, 128)), (127, 127, 127)),
    "P transparent, left half": (transparent_palette(), (255, 255, 255)),
    "P one transparent index": (transparent_palette("GIF", 0), (255, 255, 255)),
    "RGB with tRNS": (with_mode("RGB", (9, 9, 9), transparency=(9, 9, 9)), (255, 255, 255)),
    "L with tRNS": (with_mode("L", 9, transparency=9), (255, 255, 255)),
    "L with another tRNS": (with_mode("L", 9, transparency=8), (9, 9, 9)),
    "I;16 white": (grey16(65535), (255, 255, 255)),
    "I;16 middle": (grey16(0x8040), (128, 128, 128)),
    "I;16 dark": (grey16(1000), (3, 3, 3)),
    "I;16 TIFF": (grey16(0x8040, "TIFF"), (128, 128, 128)),
    "I TIFF": (with_mode("I", 0x8040, "TIFF"), (128, 128, 128)),
    "CMYK JPEG": (with_mode("CMYK", (0, 255, 255, 0), "JPEG", quality=100), (254, 0, 0)),
    "CMYK TIFF": (with_mode("CMYK", (0, 255, 255, 0), "TIFF"), (255, 0, 0)),
    "LAB TIFF": (with_mode("LAB", (255, 128, 128), "TIFF"), (255, 255, 255)),
    "YCbCr JPEG": (with_mode("YCbCr", (128, 128, 128), "JPEG"), (128, 128, 128)),
    "RGBA WEBP": (with_mode("RGBA", (10, 20, 30, 0), "WEBP"), (255, 255, 255)),
    "RGBA AVIF": (with_mode("RGBA", (10, 20, 30, 0), "AVIF"), (255, 255, 255)),
    "BMP": (with_mode("RGB", (10, 20, 30), "BMP"), (10, 20, 30)),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(name):
    data, colour = MODES[name]
    assert np.abs(shown(data)[4, 2].astype(int) - colour).max() <= 1


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(shown(data).astype(int) - (255, 0, 0)).max() <= 3


def test_an_icc_profile_changes_nothing():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(shown(encoded(quadrants(), icc_profile=profile)), np.asarray(quadrants()))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def text_bomb() -> bytes:
    packed = zlib.compress(bytes(50 << 20))
    return png(header(8, 8), *[(b"zTXt", b"k\0\0" + packed)] * 4, (b"IDAT", zlib.compress(bytes(200))), (b"IEND", b""))


def webp_canvas_bomb() -> bytes:
    extended = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\x00" + b"\xff\xff\x00"
    return b"RIFF" + struct.pack("<I", len(extended)) + extended


def scans(count: int) -> bytes:
    """A progressive JPEG that goes over its pixels again and again."""
    data = encoded(quadrants(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


BROKEN = {
    "empty": b"",
    "text": b"<html><body>404</body></html>",
    "zeros": bytes(1000),
    "png signature": b"\x89PNG\r\n\x1a\n",
    "png bomb": png(header(60_000, 60_000), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")),
    "png just over the bound": png(header(MAX_PIXELS // 1000 + 1, 1000)),
    "webp canvas bomb": webp_canvas_bomb(),
    "text bomb": text_bomb(),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF",
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "float tiff": with_mode("F", 0.5, "TIFF"),
    "32-bit grey": with_mode("I", 70_000, "TIFF"),
    "negative grey": with_mode("I", -1, "TIFF"),
    "no image data": png(header(8, 8), (b"IEND", b"")),
    "jpeg of 1,000 scans": scans(1000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_and_hostile_bytes_are_unreadable(name):
    with pytest.raises(UnreadableImage, match=r"\w"):
        shown(BROKEN[name], 8)


def test_a_film_behind_a_photograph_is_not_taken_for_scans():
    rest = np.random.default_rng(0).integers(0, 256, 30 << 20, dtype=np.uint8).tobytes()
    assert image_size(scans(1) + rest) == (32, 32)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"])
def test_truncated_files_are_unreadable(format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    for keep in (0.1, 0.5, 0.9):
        with pytest.raises(UnreadableImage):
            shown(data[: int(len(data) * keep)], 64)


@given(st.data())
@settings(deadline=None)
def test_any_bytes_end_in_pixels_or_unreadable(data):
    name = data.draw(st.sampled_from([name for name in MODES if "AVIF" not in name]))
    damaged = bytearray(MODES[name][0])
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=4)
    ):
        damaged[position] = value
    try:
        pixels = shown(bytes(damaged), 8)
    except UnreadableImage:
        return
    assert pixels.shape == (8, 8, 3)


def test_warnings_turned_into_errors_change_nothing():
    import warnings

    data = transparent_palette()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shown(data).shape == (8, 8, 3)


def test_a_size_that_changed_in_between_is_noticed():
    view = geometry((8, 8), target=(8, 8), center_crop=True, crop_words=(0, 0), flip=False)
    with pytest.raises(UnreadableImage, match="changed"):
        render(encoded(quadrants()), view)


def test_bombs_do_not_cost_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("png bomb", "webp canvas bomb", "text bomb"):
        with pytest.raises(UnreadableImage):
            image_size(BROKEN[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_worker_imports_no_more_than_it_needs():
    heavy = ("torch", "datasets", "pyarrow")
    code = f"import sys, engine.data.media.image; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


class TestMask:
    """A mask goes where its image goes."""

    @staticmethod
    def png_of(pixels, mode):
        buffer = io.BytesIO()
        Image.fromarray(pixels, mode).save(buffer, "PNG")
        return buffer.getvalue()

    def views(self, size, resolution=64):
        words = [(0, 0), (2**64 - 1, 2**64 - 1), (2**63, 2**62)]
        for flip in (False, True):
            for word in words:
                yield geometry(size, target=(resolution, resolution), center_crop=False, crop_words=word, flip=flip)

    @pytest.mark.parametrize("size", [(128, 96), (64, 200), (64, 64)])
    def test_follows_the_images_crop_and_flip(self, size):
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
        data = self.png_of(pixels, "L")
        opaque = np.dstack([np.zeros((*pixels.shape, 3), np.uint8), pixels])
        for view in self.views(size):
            shown = render(data, view)[..., 0]  # the mask as if it were the image
            expected = np.asarray(Image.fromarray(shown).resize((8, 8), Image.Resampling.BOX))
            assert np.array_equal(render_mask(data, view, (8, 8), alpha=False), expected)
            assert np.array_equal(render_mask(self.png_of(opaque, "RGBA"), view, (8, 8), alpha=True), expected)
        mean = shown.reshape(8, 8, 8, 8).mean(axis=(1, 3))
        assert np.abs(expected - mean).max() <= 1

    def test_an_image_without_transparency_counts_fully(self):
        data = self.png_of(np.zeros((64, 64, 3), np.uint8), "RGB")
        view = geometry((64, 64), target=(64, 64), center_crop=True, crop_words=(0, 0), flip=False)
        assert (render_mask(data, view, (8, 8), alpha=True) == 255).all()

    def test_a_smaller_mask_of_the_same_shape_will_do(self):
        data = self.png_of(np.full((30, 20), 255, np.uint8), "L")
        view = geometry((200, 300), target=(64, 64), center_crop=True, crop_words=(0, 0), flip=False)
        assert (render_mask(data, view, (8, 8), alpha=False) == 255).all()
        other = geometry((300, 200), target=(64, 64), center_crop=True, crop_words=(0, 0), flip=False)
        with pytest.raises(UnreadableImage, match="another aspect ratio"):
            render_mask(data, other, (8, 8), alpha=False)


@pytest.mark.parametrize("head", [b"\0\0\0\x20ftypisom", b"\x1a\x45\xdf\xa3", b"RIFF\0\0\0\0AVI LIST"])
def test_a_video_is_called_one(head):
    with pytest.raises(UnreadableImage, match=r"it is a video \(.*\), not an image"):
        image_size(head + bytes(64))

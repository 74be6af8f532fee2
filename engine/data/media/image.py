"""The medium `image`: decode images to pixels. NumPy and Pillow only: worker processes import this module.

The bytes are untrusted. Any failure to decode them becomes `UnreadableImage`, and the caller skips that image alone.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import PIL
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from engine.data.media.geometry import Geometry, Size, UnreadableImage
from engine.data.media.medium import Medium, Pixels
from engine.data.media.video.signatures import CONTAINERS, container_name
from engine.task.plan.extent import Extent

# The formats of cameras, the web and image editors. Left out: formats that start other programs (EPS), documents (PDF)
# and formats that datasets do not contain, because each parser is an attack surface.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
_ONE_FRAME = ("JPEG", "MPO", "BMP")
_PLUGINS = (AvifImagePlugin, TiffImagePlugin, WebPImagePlugin)  # registered here: asking Pillow for them imports all 40

# Suffixes of the files; the format is detected from the content.
_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"]
)

# The size at which Pillow raises an error by default. Checked on the header, before any decoding.
MAX_PIXELS = 178_956_970
# Each scan of a progressive JPEG goes over all pixels and may take a few bytes. Editors write about ten scans; in data
# appended to a photograph, such as a video, the marker occurs by chance about once in 64 KiB.
_MAX_SCANS = 500
_BYTES_PER_SCAN = 16 << 10

# Pillow also logs the errors that it raises; without a handler they would be printed on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnknownFormatError(UnreadableImage):
    """The bytes are not an image of a format that is read."""


def image_size(data: bytes) -> Size:
    """Return the upright (width, height) of an encoded image, from its header alone. Raises UnreadableImage."""
    with _refusing(), _open(data) as image:
        return _upright_size(image.size, _orientation(image))


def measure(data: bytes) -> Extent:
    """Return the upright size of an encoded image, from its header alone. Raises UnreadableImage."""
    return Extent(*image_size(data))


def check(data: bytes) -> Extent:
    """Decode an image completely and return its upright size. Raises UnreadableImage."""
    with _refusing(), _open(data) as image:
        size = _upright_size(image.size, _orientation(image))
        image.load()
        if image.mode == "F" or image.mode.startswith("I"):  # what `render` might refuse
            _rgb(image)
        return Extent(*size)


def decode(data: bytes, *, size: Size | None = None) -> Image.Image:
    """Return the whole image in RGB, upright, with transparency composited on white.

    Raises UnreadableImage, also if `size` is given and the image's upright (width, height) is another one.
    """
    with _refusing(), _open(data) as image:
        orientation = _orientation(image)
        if size is not None and _upright_size(image.size, orientation) != size:
            raise UnreadableImage("its size changed while the job ran")
        image.load()
        pixels = _rgb(image)
    return pixels if orientation == 1 else pixels.transpose(_TRANSPOSITIONS[orientation])


def render(data: bytes, view: Geometry) -> Pixels:
    """Decode `data` and return the part `view`: RGB, uint8, shape (height, width, 3), C-contiguous, writable.

    Transparency is composited on white; of an animation the first frame is taken; 16-bit grey keeps its upper byte. ICC
    profiles are ignored, as in other trainers and in the base models' own training: the values are taken as sRGB.
    Raises UnreadableImage.
    """
    pixels = decode(data, size=view.original)
    # Pillow's bilinear filter widens with the reduction (antialiasing), and is what torchvision applies to PIL images
    # by default: the pixels that Diffusers' own training scripts see.
    pixels = pixels.resize(view.resized, Image.Resampling.BILINEAR)
    pixels = pixels.crop(view.box)
    if view.flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(pixels, dtype=np.uint8)


def check_mask(data: bytes, size: Size) -> None:
    """Raise UnreadableImage if `render_mask` would refuse `data` as the mask of an image of `size`."""
    _decode_mask(data, size)


def has_alpha(data: bytes) -> bool:
    """Return whether an image has an alpha channel or other transparency. Raises UnreadableImage."""
    with _refusing(), _open(data) as image:
        return image.has_transparency_data


def has_more_frames(data: bytes) -> bool:
    """Return whether an image has more than one frame: an animation, or a TIFF of several pages.

    Further frames of JPEGs are not counted: cameras store previews of the same picture there.
    """
    try:
        with _refusing(), _open(data) as image:
            if image.format in _ONE_FRAME:
                return False
            image.seek(1)
    except UnreadableImage:  # there is no second frame, or it cannot be read
        return False
    return True


def _decode_mask(data: bytes, size: Size) -> Image.Image:
    """Return a mask as greyscale. Raises UnreadableImage, also if its aspect ratio differs from that of `size`."""
    try:
        mask = decode(data).convert("L")
    except UnreadableImage as error:
        raise UnreadableImage(f"its mask cannot be read: {error}") from error
    wanted, found = size[0] / size[1], mask.width / mask.height
    if not 0.98 < found / wanted < 1.02:
        raise UnreadableImage(f"its mask has another aspect ratio ({mask.width} x {mask.height} pixels)")
    return mask


def render_mask(data: bytes, view: Geometry, size: Size, *, alpha: bool) -> Pixels:
    """Return the part `view` of a mask, averaged down to `size` (width, height): uint8, shape (height, width).

    `data` is the mask, an image of the same aspect ratio whose brightness is the weight; or, with `alpha`, the image
    itself, whose opacity is the weight. Raises UnreadableImage.
    """
    if alpha:
        with _refusing(), _open(data) as image:
            orientation = _orientation(image)
            image.load()
            mask = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        mask = mask if mask is not None else Image.new("L", image.size, 255)
        mask = mask if orientation == 1 else mask.transpose(_TRANSPOSITIONS[orientation])
    else:
        mask = _decode_mask(data, view.original)
    mask = mask.resize(view.resized, Image.Resampling.BILINEAR)
    mask = mask.crop(view.box)
    if view.flip:
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(mask.resize(size, Image.Resampling.BOX), dtype=np.uint8)


@contextmanager
def _refusing() -> Iterator[None]:
    """Return a context that turns failures into UnreadableImage and ignores Pillow's warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UnreadableImage, MemoryError):  # which images are skipped must not depend on the machine's memory
        raise
    # On damaged input Pillow's decoders raise OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error,
    # zlib.error, EOFError, OverflowError and more.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableImage(f"{type(error).__name__}: {reason}" if reason else type(error).__name__) from error


def _open(data: bytes) -> Image.Image:
    """Open an image and check its size, without decoding pixels. Raises UnreadableImage."""
    if not data:
        raise UnreadableImage("the file is empty")
    _refuse_large_webp_canvas(data)
    _refuse_endless_scans(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnknownFormatError(_unknown(data)) from None
    _check_pixels(image.size)
    return image


def _unknown(data: bytes) -> str:
    """Return the reason to refuse bytes of a format that is not read."""
    container = container_name(data)
    if container is None:
        return f"it is not a readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
    return f"it is a video ({CONTAINERS[container]}), not an image: video models train on videos, see docs/clips.md"


def _check_pixels(size: Size) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"it has {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")


def _refuse_large_webp_canvas(data: bytes) -> None:
    """Check the canvas size of an extended WebP file: libwebp allocates up to 32 GB for it when it opens the file."""
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        width, height = int.from_bytes(data[24:27], "little"), int.from_bytes(data[27:30], "little")
        _check_pixels((width + 1, height + 1))


def _refuse_endless_scans(data: bytes) -> None:
    """Refuse JPEGs with very many scans: ten megabytes can take half an hour (libjpeg-turbo, report LJT-01-005)."""
    most = _MAX_SCANS + len(data) // _BYTES_PER_SCAN
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > most:
        raise UnreadableImage(f"it has more than {most} scans")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation in the header, 1 to 8; 1 (as stored) if it is missing or invalid."""
    if image.format == "TIFF":
        return 1  # Pillow rotates TIFF images itself, and already reports the rotated size
    try:
        # The base class's method: that of PNG decodes all pixels to look for EXIF behind them.
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF is common, also in images with intact pixels
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _upright_size(size: Size, orientation: int) -> Size:
    return (size[1], size[0]) if orientation >= 5 else size


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB, with transparency composited on white. Raises UnreadableImage."""
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _grey16(image).convert("RGB")
    if image.mode == "La":  # premultiplied: Pillow has no direct conversion to RGBA
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    background = Image.new("RGB", image.size, "white")
    background.paste(layers, mask=layers.getchannel("A"))
    return background


def _grey16(image: Image.Image) -> Image.Image:
    """Return 16-bit grey in 8 bits, by its upper byte like 16-bit colour; `convert` would clip most values to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UnreadableImage("32-bit grey pixels have no defined range; save it with 8 or 16 bits")
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


IMAGE: Final = Medium(
    suffixes=_SUFFIXES,
    reader_version=PIL.__version__,
    measure=measure,
    check=check,
    render=render,
    check_mask=check_mask,
    render_mask=render_mask,
    has_alpha=has_alpha,
    has_more_frames=has_more_frames,
)

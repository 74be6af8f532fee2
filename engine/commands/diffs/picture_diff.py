"""Say how alike the validation images and clips of two results are, by perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.core.errors import CheckpointError
from engine.core.files import atomic_files
from engine.core.messages import plural
from engine.data.media import image
from engine.data.media.geometry import UnreadableImage, geometry
from engine.evaluation.drawings import VIDEO_SUFFIX

Pixels = npt.NDArray[np.uint8]

_MAX_BYTES: Final = {".png": 64 << 20, VIDEO_SUFFIX: 1 << 30}
_HASH_BITS: Final = 64


def compare_pictures(one: Path, other: Path) -> list[str]:
    """Describe the differences between the images and clips of the same names in two folders, in lines for a person.

    Raises:
        CheckpointError: a file cannot be read.
    """
    names = sorted(_names(one) & _names(other))
    if not names:
        return ["images   none in both"]
    try:
        import imagehash  # noqa: F401
        import scipy.fftpack  # noqa: F401
    except ImportError:
        return ["images   not compared: pip install -r requirements-compare.txt (ImageHash and scipy)"]
    lines = []
    for name in names:
        both = [read_or_refuse(folder / name, _MAX_BYTES[Path(name).suffix]) for folder in (one, other)]
        lines.append(_of_clips(name, *both) if name.endswith(VIDEO_SUFFIX) else _of_images(name, *both))
    return lines


def _names(folder: Path) -> set[str]:
    return {path.name for suffix in _MAX_BYTES for path in folder.glob(f"*{suffix}")}


def _of_images(name: str, one: bytes, other: bytes) -> str:
    return f"images   {name}: {hamming(one, other)} of {_HASH_BITS} bits of the perceptual hash differ"


def _of_clips(name: str, one: bytes, other: bytes) -> str:
    """Describe the differences between two clips, frame by frame."""
    distances: list[int] = []
    try:
        for left, right in zip_longest(_frames(one), _frames(other)):
            if left is None or right is None:
                return f"clips    {name}: they have different numbers of frames; the first {len(distances)} are in both"
            distances.append(_distance(left, right))
    except UnreadableImage as error:
        raise CheckpointError(f"a validation clip cannot be read: {error}") from None
    mean = sum(distances) / len(distances)
    return (
        f"clips    {name}: in {plural(len(distances), 'frame')}, {mean:.1f} of {_HASH_BITS} bits of the perceptual "
        f"hash differ on average, {max(distances)} at most"
    )


def _frames(data: bytes) -> Iterator[Pixels]:
    """Yield the central squares of a clip's frames: uint8, (side, side, 3). Raises UnreadableImage."""
    from engine.data.media.video import decoding  # loads FFmpeg, which images do without

    for pixels in decoding.frames(data, range(decoding.read_facts(data, None).frames), None):
        height, width, _ = pixels.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        yield pixels[top : top + side, left : left + side]


def hamming(one: bytes, other: bytes) -> int:
    """Return the number of bits in which two images' 64-bit pHash differs (Zauner 2010; ImageHash: DCT of 32 x 32).

    Raises:
        CheckpointError: one is not a readable image.
    """
    return _distance(_pixels(one), _pixels(other))


def _distance(one: Pixels, other: Pixels) -> int:
    import imagehash
    from PIL import Image

    hashes = [imagehash.phash(Image.fromarray(np.ascontiguousarray(pixels)), hash_size=8) for pixels in (one, other)]
    return int(hashes[0] - hashes[1])


def _pixels(data: bytes) -> Pixels:
    """Return the image's central square (height, width, 3), decoded within the job's own size limits."""
    try:
        size = image.measure(data).size
        view = geometry(size, target=(min(size), min(size)), center_crop=True, crop_words=(0, 0), flip=False)
        return image.render(data, view)
    except UnreadableImage as error:
        raise CheckpointError(f"a validation image cannot be read: {error}") from None


def read_or_refuse(path: Path, limit: int) -> bytes:
    """Return a result's file. Raises CheckpointError if it cannot be read or has more than `limit` bytes."""
    try:
        data = atomic_files.read_plain(path, limit)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); give an output folder") from None
    if data is None:
        raise CheckpointError(f"{path} is not a plain file of at most {limit} bytes")
    return data

"""Images that are bombs, broken or something else, each beside a good one: skipped, or decoded within bounds."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.integration.hostile.archives import zip_of
from tests.integration.hostile.case import MIB, Case, Cases, Place
from tests.integration.hostile.tables import lines
from tests.support.tiny import SMALL_PNG

BOUND = 1200 * MIB
"""178,956,970 pixels are decoded at most: 0.7 GB with an alpha channel."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *extra: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animated() -> bytes:
    frames = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(0, 250, 25)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def webp_canvas() -> bytes:
    """An extended WebP file of 16,384 x 16,384 x 16,384... its canvas is what its header says."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff\xff\xff" * 2
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_loop() -> bytes:
    """A directory whose next directory is itself."""
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<HHHII", 1, 256, 3, 1, 64) + struct.pack("<I", 8)


def bmp_bomb() -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def gif_bomb() -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
        + bytes(6)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x02\x02\x4c\x01\0;"
    )


def scans(count: int) -> bytes:
    """A progressive JPEG that goes over its pixels again and again."""
    data = saved(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def mpo() -> bytes:
    """Two pictures in one JPEG, of which the second is said to be beyond the file's end."""
    first = Image.new("RGB", (64, 64))
    data = saved(first, "MPO", save_all=True, append_images=[first])
    return data[:-300]


def tiff_claim(tag: int, kind: int, count: int) -> bytes:
    """An entry of a TIFF's directory that claims so many values."""
    entries = struct.pack("<HHII", 256, 3, 1, 64) + struct.pack("<HHII", 257, 3, 1, 64)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 3) + entries + struct.pack("<HHII", tag, kind, count, 8)


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("L", (64, 64)), "JPEG"))
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def exif_loop() -> bytes:
    """Metadata whose directory is inside itself."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)
    data = saved(Image.new("RGB", (64, 64)), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def image(
    build: Callable[[], bytes],
    skipped: bool,
    *words: str,
    quick: bool = False,
    name: str = "2.png",
    memory: int = BOUND,
) -> Case:
    """Beside a good image, both visited; `skipped` says whether the bad one is left out."""

    def make(place: Place) -> dict[str, object]:
        (place.inputs / "1.png").write_bytes(SMALL_PNG)
        (place.inputs / name).write_bytes(build())
        rows = [{"file_name": file, "text": "a"} for file in ("1.png", name)]
        (place.inputs / "metadata.jsonl").write_bytes(lines(*rows))
        return {"dataset": {"name": str(place.inputs)}}

    said = ("skipping image", *words) if skipped else words
    return Case(make=make, code=0, words=said, train=True, memory=memory, seconds=120, quick=quick)


PDF = b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"
CASES: Cases = {
    "a pixel bomb in PNG": image(lambda: png(60_000, 60_000, zeros(60_000 * 1000)), True, "pixels", quick=True),
    "2 billion by 2 billion": image(lambda: png(2**31 - 1, 2**31 - 1, zeros(10)), True),
    "as many pixels as are decoded": image(lambda: png(13_377, 13_377, zeros(13_378 * 13_377)), False),
    "as many in 16-bit colour with alpha": image(
        lambda: png(13_000, 13_000, zeros(13_000 * (13_000 * 8 + 1)), depth=16, colour=6),
        False,
        memory=5 * BOUND // 2,  # of all images that are decoded, none needs more
    ),
    "a pixel bomb in GIF": image(gif_bomb, True, "pixels"),
    "a pixel bomb in BMP": image(bmp_bomb, True, "pixels"),
    "a pixel bomb in WebP": image(webp_canvas, True, "pixels"),
    "a text bomb in PNG": image(lambda: png(64, 64, zeros(65 * 64), chunk(b"zTXt", b"a\0\0" + zeros(200 * MIB))), True),
    "a profile bomb in PNG": image(
        lambda: png(64, 64, zeros(65 * 64), chunk(b"iCCP", b"a\0\0" + zeros(200 * MIB))), True
    ),
    "one by many": image(lambda: png(1, 100_000, zeros(200_000)), True, "extreme"),
    "many by one": image(lambda: png(1_000_000, 1, zeros(1_000_001)), True, "extreme"),
    "one by one": image(lambda: png(1, 1, zeros(2)), False),
    "none by none": image(lambda: png(0, 0, zeros(1)), True),
    "nothing": image(lambda: b"", True, "empty"),
    "half a PNG": image(lambda: SMALL_PNG[: len(SMALL_PNG) // 2], True),
    "half a JPEG": image(lambda: saved(Image.new("RGB", (64, 64)), "JPEG")[:300], True),
    "a PNG with a false sum": image(lambda: SMALL_PNG[:50] + b"\x00" + SMALL_PNG[51:], True),
    "an animation": image(animated, False),
    "a text": image(lambda: b"not an image", True),
    "a page": image(lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", True),
    "a PDF": image(lambda: PDF, True),
    "PostScript": image(lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n", True),
    "a zip behind an image": image(lambda: SMALL_PNG + zip_of({"a": b"b"}), False),
    "an image behind a PDF": image(lambda: PDF + SMALL_PNG, True),
    "an archive by its name": image(lambda: zip_of({"1.png": SMALL_PNG}), True),
    "a TIFF that is a circle": image(tiff_loop, True),
    "floating-point pixels": image(lambda: saved(Image.new("F", (64, 64)), "TIFF"), True, name="2.tif"),
    "a JPEG of 2,000 scans": image(lambda: scans(2000), True, "scans", name="2.jpg", quick=True),
    "a progressive JPEG": image(lambda: scans(1), False, name="2.jpg"),
    "a JPEG that says 65,535 x 65,535": image(lambda: jpeg_header(65535, 65535), True, "pixels", name="2.jpg"),
    "a JPEG that says 13,000 x 13,000": image(lambda: jpeg_header(13_000, 13_000), False, name="2.jpg"),
    "a JPEG of no height": image(lambda: jpeg_header(64, 0), True, name="2.jpg"),
    "a JPEG of two pictures, cut": image(mpo, False, name="2.jpg"),
    "metadata inside itself": image(exif_loop, False, name="2.jpg"),
    "a TIFF of 4 billion strips": image(lambda: tiff_claim(273, 4, 2**32 - 1), True, name="2.tif"),
    "a TIFF of 4 billion samples": image(lambda: tiff_claim(258, 3, 2**32 - 1), True, name="2.tif"),
    "a Photoshop document": image(lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 64, 64, 8, 3), True),
    "an icon": image(lambda: saved(Image.new("RGB", (64, 64)), "ICO"), True),
    "a JPEG 2000": image(lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), True),
    "an EPS behind its preview": image(
        lambda: b"\xc5\xd0\xd3\xc6" + struct.pack("<IIII", 32, 99, 0, 0) + bytes(99), True
    ),
    "an AVIF of nothing": image(lambda: b"\0\0\0\x1cftypavif" + bytes(16), True, name="2.avif"),
    "a palette with transparency": image(lambda: saved(Image.new("P", (64, 64)), "PNG", transparency=0), False),
    "CMYK": image(lambda: saved(Image.new("CMYK", (64, 64)), "JPEG"), False, name="2.jpg"),
}

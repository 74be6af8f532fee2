"""A folder of 40 clips as people have them: five codecs, odd frame rates and sizes, broken and short ones, images."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

from PIL import Image

from tests.support.clips import make_clip

FILM = Fraction(24000, 1001)
RATES = (24, 25, 30, FILM, 50, 12)
CODECS = {"h264": ".mp4", "hevc": ".mov", "vp9": ".webm", "av1": ".mp4", "ffv1": ".mkv"}
SIZES = ((96, 64), (97, 65), (64, 96), (160, 90), (66, 64))
FRAMES = 24
"""Frames of an ordinary clip."""


def build_forty_clips(folder: Path) -> Path:
    """Write 40 samples with side-car captions: 35 clips that can be trained, one short, two broken, two images."""
    folder.mkdir(parents=True)
    for number, (codec, rate) in enumerate(itertools.product(CODECS, RATES)):
        size = SIZES[number % len(SIZES)]
        odd = {"pixel_format": "yuv444p"} if size[0] % 2 and codec in ("h264", "hevc") else {}
        if codec == "av1":  # the encoder takes even sizes
            size = (size[0] // 2 * 2, size[1] // 2 * 2)
        name = f"{codec}-{number:02}{CODECS[codec]}"
        make_clip(folder / name, codec=codec, frames=FRAMES, size=size, rate=rate, first=number, **odd)
    for rotation in (90, 180, 270):
        make_clip(folder / f"turned-{rotation}.mp4", frames=FRAMES, size=(64, 96), rate=25, rotation=rotation)
    times = [40 * frame + 10 * (frame % 3) for frame in range(FRAMES)]
    make_clip(folder / "variable.mkv", frames=FRAMES, rate=25, times=times)
    make_clip(folder / "old.avi", codec="mpeg4", frames=FRAMES, rate=25)
    make_clip(folder / "short.mp4", frames=5, rate=25)
    whole = make_clip(folder / "cut.mp4", frames=FRAMES, rate=25).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "no-video.mp4").write_bytes(b"this is not a video" * 20)
    for name, size in (("still.png", (90, 70)), ("photo.jpg", (64, 64))):
        Image.new("RGB", size, (200, 30, 60)).save(folder / name)
    for path in sorted(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"moving squares, {path.stem}\n")
    return folder

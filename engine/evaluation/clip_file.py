"""Write a clip as a file that browsers and common players open: AV1 in MP4, encoded by SVT-AV1, whose licence is BSD.

The encoders of H.264 and H.265 in PyAV's wheel are GPL software, which this program never runs.
"""

from __future__ import annotations

import io
import os
from fractions import Fraction
from typing import Final

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

Frames = npt.NDArray[np.uint8]

_OPTIONS: Final = {
    "preset": "8",
    "crf": "18",
    "g": "48",
    "flags": "+bitexact",
    # One thread: the same bytes on every number of processors.
    "svtav1-params": "lp=1",
}
ENCODER: Final = {"av": av.__version__, **_OPTIONS}
"""The encoder's version and options, on which a clip's bytes depend besides its frames and their rate."""
_MAX_DENOMINATOR: Final = 10**6
"""FFmpeg has 32 bits for each part of a fraction. A rate such as 23.976023976023978 becomes 24000/1001."""
_BT709: Final = 1
"""The value of BT.709 in AVColorSpace (ISO 23091-2)."""
_MOOV_BYTES: Final = (2048, 32)
"""Bytes kept free for the index in front of the frames, where players and browsers look first: fixed, and per frame."""


def encode_clip(frames: Frames, frame_rate: float) -> bytes:
    """Return frames as an MP4 file of AV1 in YUV 4:2:0, 8 bits, BT.709: the same bytes each time, in any process.

    An odd width or height is padded by repeating the last column or row. The file holds no time and no version.

    Args:
        frames: uint8 RGB, shape (frames, height, width, 3).
        frame_rate: frames a second, as `dataset.frame_rate` may be.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors alone: SVT-AV1 writes its settings to stderr
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    rate, buffer = Fraction(str(frame_rate)).limit_denominator(_MAX_DENOMINATOR), io.BytesIO()
    index_bytes = _MOOV_BYTES[0] + _MOOV_BYTES[1] * len(frames)
    with av.open(
        buffer, "w", format="mp4", container_options={"fflags": "+bitexact", "moov_size": str(index_bytes)}
    ) as container:
        stream = container.add_stream("libsvtav1", rate=rate, options=dict(_OPTIONS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        stream.color_range, stream.colorspace = ColorRange.MPEG, _BT709
        stream.color_primaries, stream.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        reformatter = VideoReformatter()
        for index, pixels in enumerate(frames):
            frame = _yuv(pixels, reformatter)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _yuv(pixels: Frames, reformatter: VideoReformatter) -> av.VideoFrame:
    return reformatter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
        threads=1,
    )

"""Read a clip's facts from its packets, and decode its frames. PyAV and NumPy only: workers import this module.

The bytes are untrusted. Any failure to decode them becomes `UnreadableImage`, and the caller skips that clip alone.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from engine.data.media.clip_facts import ClipFacts
from engine.data.media.geometry import Size, UnreadableImage
from engine.data.media.medium import Pixels
from engine.data.media.video.container import MAX_FRAME_PIXELS, codec_name, opened
from engine.data.media.video.picture import display_matrix, is_upright, rgb, swaps_sides, upright
from engine.data.media.video.times import MAX_FRAMES, FrameTimes

MAX_PIXELS: Final = 2**35
"""Limit on the pixels of all frames up to the last one that is decoded, which bounds the time: nine minutes of 1,920 x
1,080 at 30 frames a second. Decoding begins at the first frame, whichever are shown."""

_HIDDEN_VP8: Final = 0x10
"""The bit `show_frame` of a VP8 frame's first byte (RFC 6386, 9.1)."""


class _Header(NamedTuple):
    times: FrameTimes
    """The times of all frames that are shown."""
    size: Size
    """Upright."""
    codec: str
    is_turned: bool

    def facts(self, frame_rate: float | None) -> ClipFacts:
        return ClipFacts(
            width=self.size[0],
            height=self.size[1],
            frames=self.times.num_frames(frame_rate),
            file_frames=len(self.times.ticks),
            file_rate=self.times.average_rate,
            codec=self.codec,
            has_variable_rate=self.times.has_variable_rate,
            is_turned=self.is_turned,
        )


def read_facts(data: bytes, frame_rate: float | None) -> ClipFacts:
    """Return a clip's facts from its packets and its first frame.

    Args:
        data: the encoded clip.
        frame_rate: frames a second of the resampled clip (rule: `times.py`); None keeps the file's frames.

    Raises:
        UnreadableImage: it is not a clip, is cut or too large, or its first frame cannot be decoded.
    """
    return _header(data).facts(frame_rate)


def check(data: bytes, frame_rate: float | None, is_over: Callable[[], bool] = lambda: False) -> ClipFacts:
    """Decode a clip and return its facts, those of all its frames. Raises UnreadableImage, also if a frame is lost or
    damaged.

    Args:
        data: the encoded clip.
        frame_rate: as for `read_facts`.
        is_over: called after each frame; True leaves the frames after it undecoded.
    """
    header = _header(data)
    for _ in _decoded(data, header.times, len(header.times.ticks)):
        if is_over():
            break
    return header.facts(frame_rate)


def frames(
    data: bytes, positions: Sequence[int], frame_rate: float | None, *, size: Size | None = None
) -> Iterator[Pixels]:
    """Yield the frames at `positions` of the clip at `frame_rate`: uint8 RGB, (height, width, 3), upright, as stored.

    Decoding begins with the first frame of the file and ends with the last that is needed; one frame is kept. A file
    whose pixels are not square gives frames of another shape than `ClipFacts.extent`.

    Args:
        data: the encoded clip.
        positions: one or more, in ascending order; the same one may repeat.
        frame_rate: frames a second of the clip that the positions count; None counts the file's frames.
        size: the upright (width, height) that the clip must have; None allows any.

    Raises:
        UnreadableImage: it cannot be decoded, has another size, or ends before the last position.
    """
    times, found, *_ = _header(data)
    if size not in (None, found) or positions[-1] >= times.num_frames(frame_rate):
        raise UnreadableImage("its size or length changed while the job ran")
    wanted = collections.Counter(times.file_frames(positions, frame_rate))
    reformatter = VideoReformatter()
    for index, frame in enumerate(_decoded(data, times, max(wanted) + 1)):
        if wanted[index]:
            pixels = upright(rgb(frame, reformatter), display_matrix(frame))
            yield from itertools.repeat(pixels, wanted[index])


def _header(data: bytes) -> _Header:
    """Return what a clip's packets and its first frame tell. Raises UnreadableImage."""
    ticks: list[int] = []
    first: VideoFrame | None = None
    with opened(data) as (container, stream):
        for packet in container.demux(stream):
            for frame in [] if first else stream.decode(packet)[:1]:
                first, size = frame, _shown_size(stream, frame)
            if packet.size and _is_shown(packet, stream):
                ticks.append(_time(packet))
            if len(ticks) > MAX_FRAMES:
                raise UnreadableImage(f"it has more than {MAX_FRAMES:,} frames; cut it into shorter clips")
        codec, tick = codec_name(stream), stream.time_base  # the memory of a stream is freed with its container
    if not ticks or first is None:
        raise UnreadableImage("it has no frames")
    assert tick is not None
    is_turned = not is_upright(display_matrix(first))
    return _Header(FrameTimes(tuple(sorted(ticks)), tick), size, codec, is_turned)


def _time(packet: Packet[VideoStream]) -> int:
    """Return when a packet's frame is shown, in the stream's ticks. Raises UnreadableImage."""
    time = packet.pts if packet.pts is not None else packet.dts
    if time is None:
        raise UnreadableImage("its frames have no times; convert it to MP4")
    return time


def _is_shown(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    """Return whether a packet gives a frame: edit lists drop some, and VP8 has frames that only others refer to."""
    if packet.is_discard:
        return False
    return stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & _HIDDEN_VP8)


def _shown_size(stream: VideoStream, frame: VideoFrame) -> Size:
    """Return the upright (width, height) at which a frame is shown. Raises UnreadableImage."""
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, 10) <= aspect <= 10:
        raise UnreadableImage(f"its pixels have the aspect ratio {aspect}; save it with square pixels")
    width = max(1, round(width * aspect))
    return (height, width) if swaps_sides(display_matrix(frame)) else (width, height)


def _decoded(data: bytes, times: FrameTimes, count: int) -> Iterator[VideoFrame]:
    """Yield the first `count` frames of a clip in their order. Raises UnreadableImage if they are not as promised."""
    done, size = 0, (0, 0)
    with opened(data) as (container, stream):
        for packet in container.demux(stream):
            for frame in stream.decode(packet):
                size = size if done else (frame.width, frame.height)
                _check_frame(frame, size, done, count)
                if done >= len(times.ticks) or frame.pts != times.ticks[done]:
                    raise UnreadableImage(f"frame {done} is not at the time of a packet; convert it to MP4")
                yield frame
                done += 1
                if done == count < len(times.ticks):
                    return
    if done < count:
        raise UnreadableImage(f"decoding gives {done:,} of its {count:,} frames")


def _check_frame(frame: VideoFrame, size: Size, index: int, count: int) -> None:
    if (frame.width, frame.height) != size:
        raise UnreadableImage(f"its size changes in frame {index}; convert it to one size")
    if frame.is_corrupt:
        raise UnreadableImage(f"frame {index} is damaged")
    pixels = size[0] * size[1]
    if pixels > MAX_FRAME_PIXELS or pixels * count > MAX_PIXELS:
        raise UnreadableImage(
            f"it has {size[0]} x {size[1]} pixels in {count:,} frames, more than the limit; cut it or scale it down"
        )

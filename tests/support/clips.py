"""Short clips in every codec that is decoded. Each frame shows its number, so that a test sees which frames it got.

The encoders are those of PyAV's wheel; of them x264 and x265 are GPL software, which tests alone use.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

_ENCODERS = {
    "h264": ("libx264", {"preset": "ultrafast", "x264-params": "threads=1"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
    "ffv1": ("ffv1", {}),
    "mpeg4": ("mpeg4", {}),
    "mjpeg": ("mjpeg", {}),
    "prores": ("prores_ks", {}),
}
os.environ.setdefault("SVT_LOG", "1")  # errors alone: it writes to stderr by itself
CODECS = tuple(name for name in _ENCODERS if name != "prores")
"""Those that are decoded."""
_PIXEL_FORMATS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}
_BITS = 8


def pictures(frames: int, size: tuple[int, int], *, first: int = 0) -> npt.NDArray[np.uint8]:
    """The frames of a clip: uint8, shape (frames, height, width, 3); a red and a blue square move over green.

    The top quarter is the frame's number: 8 fields, the lowest bit on the left, white for 1 and black for 0.
    """
    width, height = size
    clip = np.empty((frames, height, width, 3), np.uint8)
    clip[:] = (40, 160, 60)
    side = max(2, height // 4)
    for index in range(frames):
        number = first + index
        left = number * 2 % max(1, width - side)
        clip[index, height // 2 : height // 2 + side, left : left + side] = (220, 30, 30)
        clip[index, height - side :, width - side - left : width - left] = (30, 30, 220)
        for bit in range(_BITS):
            field = slice(bit * width // _BITS, (bit + 1) * width // _BITS)
            clip[index, : height // 4, field] = 255 * (number >> bit & 1)
    return clip


def numbers(clip: npt.NDArray[np.uint8]) -> list[int]:
    """The numbers that the frames of a clip show, (frames, height, width, 3)."""
    _, height, width, _ = clip.shape
    row = clip[:, height // 8, :, :].astype(int).mean(axis=-1)
    middles = [(2 * bit + 1) * width // (2 * _BITS) for bit in range(_BITS)]
    return [sum(1 << bit for bit, at in enumerate(middles) if line[at] > 127) for line in row]


def make_clip(
    path: Path,
    *,
    codec: str = "h264",
    frames: int = 9,
    size: tuple[int, int] = (64, 48),
    rate: Fraction | int = 24,
    rotation: int = 0,
    times: Sequence[int] | None = None,
    pixel_format: str | None = None,
    pixel_aspect: Fraction | int = 1,
    audio: bool = False,
    first: int = 0,
    options: dict[str, str] | None = None,
    shown: npt.NDArray[np.uint8] | None = None,
) -> Path:
    """Write a clip and return its path, whose suffix names the container.

    Args:
        codec: one of `CODECS`, or `prores`, which is refused.
        size: (width, height) in pixels, upright: the frames are stored turned if there is a `rotation`.
        rate: frames a second.
        rotation: degrees, clockwise, by which a player has to turn what is stored; MP4 and MOV alone.
        times: milliseconds at which the frames are shown, for a variable frame rate.
        pixel_format: FFmpeg's name; None is yuv420p.
        pixel_aspect: width of a pixel, where its height is 1.
        audio: add a second of silence.
        first: the number that the first frame shows.
        options: the encoder's, beside its own here.
        shown: the frames; None takes `pictures`.
    """
    encoder, usual = _ENCODERS[codec]
    shown = pictures(frames, size, first=first) if shown is None else shown
    stored = np.rot90(shown, rotation // 90, axes=(1, 2))
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(encoder, rate=Fraction(rate), options={**usual, **(options or {})})
        stream.height, stream.width = stored.shape[1:3]
        stream.pix_fmt = pixel_format or _PIXEL_FORMATS.get(codec, "yuv420p")
        stream.thread_count = 1
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
        if rotation:
            stream.set_display_rotation(-rotation)  # FFmpeg counts counterclockwise
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("pcm_s16le" if path.suffix == ".avi" else "aac", rate=48000) if audio else None
        for index, picture in enumerate(stored):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = times[index] if times is not None else index
            frame.time_base = Fraction(1, 1000) if times is not None else 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1024), np.int16), format="s16", layout="stereo")
            silence.sample_rate = 48000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


def clip_bytes(suffix: str = ".mp4", **how: object) -> bytes:
    """The bytes of a clip of `make_clip`; `suffix` names the container."""
    with tempfile.TemporaryDirectory() as folder:
        return make_clip(Path(folder, f"clip{suffix}"), **how).read_bytes()  # type: ignore[arg-type]


def spliced(*clips: bytes, suffix: str = ".mkv") -> bytes:
    """The packets of several clips, one a frame, as those of one stream, whose header is that of the first."""
    written = io.BytesIO()
    written.name = f"clip{suffix}"
    with av.open(written, "w") as out:
        stream, count = None, 0
        for clip in clips:
            with av.open(io.BytesIO(clip)) as container:
                stream = stream or out.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.stream, packet.time_base = stream, Fraction(1, 24)
                        packet.pts = packet.dts = count
                        out.mux(packet)
                        count += 1
    return written.getvalue()


def vp8(shown: npt.NDArray[np.uint8], *, hidden: Sequence[int] = ()) -> bytes:
    """An AVI of VP8, for which the wheel has no encoder: each frame is that of a WebP image. `hidden` are not shown."""
    data = bytearray(clip_bytes(".avi", codec="mjpeg", shown=shown))
    written = io.BytesIO()
    with av.open(io.BytesIO(bytes(data))) as container, av.open(written, "w", format="avi") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for index, picture in enumerate(shown):
            webp = io.BytesIO()
            Image.fromarray(picture).save(webp, "WEBP", quality=90)
            frame = bytearray(webp.getvalue()[20:])  # behind the headers of the file and of its chunk
            if index in hidden:
                frame[0] &= ~0x10
            packet = av.Packet(bytes(frame))
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 24), index, index
            packet.is_keyframe = True
            out.mux(packet)
    return written.getvalue().replace(b"MJPG", b"VP80")


def lossless_frame(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """An encoded clip of one frame of noise."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    return clip_bytes(".mkv", codec="ffv1", pixel_format="bgra", shown=noise)

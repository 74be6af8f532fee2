"""Open the bytes of a clip: which containers and codecs are decoded, and that nothing but these bytes is opened.

FFmpeg reads hundreds of formats, of which some name other files and addresses. Here the container is one of three,
chosen by the first bytes and given to FFmpeg by name, the decoder is one of a short list, and whatever FFmpeg asks to
open is refused. The decoders run in this process, as those of images do.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, NoReturn

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from engine.data.media.geometry import UnreadableImage
from engine.data.media.video.claims import refuse_claims
from engine.data.media.video.signatures import container_name

MAX_FRAME_PIXELS: Final = 2**24
"""Limit on the pixels of a frame: an action camera's 5,312 x 2,988 fits. A decoder keeps up to 17 frames: 1.2 GB were
measured of H.264 at 10 bits, conversion included."""

_PROBED_BYTES: Final = 2**20
"""Limit on the bytes of packets that FFmpeg reads to identify the streams, and keeps with 400 bytes for each packet."""
_DECODERS: Final = {
    "h264": "H.264",
    "hevc": "H.265",
    "vp8": "VP8",
    "vp9": "VP9",
    "libdav1d": "AV1",
    "ffv1": "FFV1",
    "mpeg4": "MPEG-4",
    "mjpeg": "Motion JPEG",
}
"""FFmpeg's decoders that may run, and what people call the codec."""
_LIBRARIES: Final = ("libavformat", "libavcodec", "libavutil", "libswscale")
READER_VERSION: Final = " ".join(
    [f"av {av.__version__}", *(f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in _LIBRARIES)]
)
"""The versions of everything that decides a clip's facts and pixels."""


@contextmanager
def opened(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Return a context with a clip's container and its first video stream, whose decoder has one thread.

    Any failure inside the context to read or decode becomes UnreadableImage. Cover pictures are no video streams.
    """
    name = container_name(data)
    if name is None:
        raise UnreadableImage("it is not an MP4, MOV, WebM, Matroska or AVI video")
    refuse_claims(data, name)
    try:
        with closing(_open(data, name)) as container:
            yield container, _video_stream(container)
    # Also "cannot allocate memory": FFmpeg says so of sizes that no machine has, and Linux of hardly any other.
    except FFmpegError as error:
        raise UnreadableImage(f"FFmpeg cannot read it: {_reason(error)}") from error


def _open(data: bytes, name: str) -> InputContainer:
    options = {
        "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
        "codec_whitelist": ",".join(_DECODERS),
        "protocol_whitelist": "none",
        "max_streams": "64",
        "probesize": str(_PROBED_BYTES),
    }
    # `max_pixels` is an option of the decoders that look at the first frames when the container is opened.
    return av.open(
        io.BytesIO(data),
        "r",
        format=name,
        options={"max_pixels": str(MAX_FRAME_PIXELS)},
        container_options=options,
        metadata_errors="replace",
        io_open=_refuse_file,
    )


def codec_name(stream: VideoStream) -> str:
    """Return what people call the codec of an opened stream."""
    return _DECODERS[stream.codec_context.name]


def _refuse_file(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise UnreadableImage("it refers to another file, which is never opened; save the video as one file")


def _video_stream(container: InputContainer) -> VideoStream:
    """Return the stream to decode, ready to be. Raises UnreadableImage."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise UnreadableImage("it has no video stream")
    stream = streams[0]
    for other in container.streams:
        other.discard = Discard.default if other is stream else Discard.all
    codec = stream.codec_context
    if codec is None or codec.name not in _DECODERS:
        known = ", ".join(_DECODERS.values())
        name = "unknown" if codec is None else codec.name
        raise UnreadableImage(f"its codec is {name}; convert it to one of {known}")
    # One thread, as its number may decide which damaged frames are found; no assembly that rounds in another way.
    codec.thread_count = 1
    codec.options = {
        "max_pixels": str(MAX_FRAME_PIXELS),
        "err_detect": "crccheck+explode",
        "flags": "+bitexact",
        "idct": "simple",
    }
    return stream


def _reason(error: FFmpegError) -> str:
    return " ".join((error.strerror or type(error).__name__).split())[:200]

"""Comparisons of numbers hold with the kernels of other processors, too: libraries choose them by these variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.clips import CODECS, make_clip

UNIT = Path(__file__).parent / "unit"
COMPARISONS = ("assert_close", "approx(", "assert_equal_but_for_rounding")
KERNELS = {
    "torch's without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "torch's for AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN's for AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN's for SSE 4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "MKL's for AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "MKL's for all processors": {"MKL_CBWR": "COMPATIBLE"},
    "all for AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("variables", KERNELS.values(), ids=KERNELS)
def test_comparisons_of_numbers_hold(variables):
    files = [path for path in sorted(UNIT.rglob("test_*.py")) if any(word in path.read_text() for word in COMPARISONS)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)],
        env=os.environ | variables,
        cwd=UNIT.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]


DIGESTS = """
import ctypes, hashlib, pathlib, sys
import av
flags, folder = sys.argv[1:]
if flags:
    (library,) = pathlib.Path(av.__file__).parents[1].glob("av.libs/libavutil-*")
    ctypes.CDLL(str(library)).av_force_cpu_flags(int(flags, 0))
from engine.data.media.video.decoding import frames, read_facts
for path in sorted(pathlib.Path(folder).iterdir()):
    data = path.read_bytes()
    shown = frames(data, range(read_facts(data, None).frames), None)
    print(path.name, hashlib.sha256(b"".join(pixels.tobytes() for pixels in shown)).hexdigest())
"""
"""Prints the digest of each clip's frames, as FFmpeg decodes and converts them with these processor flags."""
PIXEL_FORMATS = ("yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p12le", "gray", "gray16le", "yuva420p", "bgra")


@pytest.mark.slow
def test_clips_have_the_same_frames_without_vectors(tmp_path):
    """dav1d, which decodes AV1, has flags of its own; AV1 leaves no choice of rounding to a decoder."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 99, 161, 3), dtype=np.uint8)
    shown = noise[:, :98, :160]
    for codec in CODECS:
        suffix = {"vp9": ".webm", "ffv1": ".mkv", "mjpeg": ".avi", "mpeg4": ".avi"}.get(codec, ".mp4")
        make_clip(tmp_path / f"{codec}{suffix}", codec=codec, shown=shown)
    for name in PIXEL_FORMATS:
        make_clip(tmp_path / f"{name}.mkv", codec="ffv1", pixel_format=name, shown=shown)
    found = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS, flags, str(tmp_path)],
            cwd=UNIT.parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for flags in ("", "0", "0x1000ff")  # what there is, none, up to SSE 4.2
    ]
    assert len(found[0].splitlines()) == len(CODECS) + len(PIXEL_FORMATS)
    assert found[0] == found[1] == found[2]

"""Comparisons of numbers hold with the kernels of other processors, too: libraries choose them by these variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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

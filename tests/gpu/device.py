"""The device of these tests: a GPU, or the CPU where `python -m benchmarks.gpu --rehearse` tries them."""

from __future__ import annotations

import os

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")

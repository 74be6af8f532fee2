"""Print what a machine with a GPU is, as JSON: for benchmarks/gpu.py, which itself uses no memory of the GPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")


def describe() -> dict[str, Any]:
    """Return names and versions, and the 16-bit TFLOP/s of a plain matrix product."""
    is_cuda = torch.cuda.is_available()
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if is_cuda else None,
        "gpus": torch.cuda.device_count(),
        "memory GiB": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if is_cuda else None,
        "driver": _driver() if is_cuda else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return found | {"matrix product TFLOP/s": round(_matrix_product("cuda" if is_cuda else "cpu"), 2)}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _matrix_product(device: str) -> float:
    """Return the TFLOP/s of square products in bf16 on random data; the median of ten after three unmeasured ones."""
    side = 8192 if device == "cuda" else 256
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(13):
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[3:]) / 1e12


if __name__ == "__main__":
    json.dump(describe(), sys.stdout)

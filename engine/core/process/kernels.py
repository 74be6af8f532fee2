"""The processor and the environment variables that decide which compute kernels libraries choose.

torch, MKL, oneDNN, NumPy and the C library choose by the processor's vendor, model and instructions, oneDNN also by
the sizes of its caches (how a convolution is cut into blocks decides in which order it is summed). Another choice
gives other bits. No clock, frequency, microcode or name that a hypervisor makes up: two runs on one machine agree.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

VARIABLES: Final = (
    "ATEN_CPU_CAPABILITY",
    "CUBLASLT_WORKSPACE_SIZE", "CUBLAS_EMULATE_SINGLE_PRECISION", "CUBLAS_EMULATION_STRATEGY",
    "CUDA_FORCE_PTX_JIT", "CUDNN_CONV_WSCAP_DBG", "DISABLE_ADDMM_CUDA_LT",
    "DNNL_CPU_ISA_HINTS", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA",
    "FBGEMM_ENABLE_AVX512_256", "FBGEMM_ENABLE_INSTRUCTIONS",
    "FBGEMM_FORCE_AUTOVEC", "FBGEMM_NO_ASMJIT", "FBGEMM_NO_AUTOVEC",
    "MKL_CBWR", "MKL_DISABLE_FAST_MM", "MKL_DOMAIN_NUM_THREADS", "MKL_ENABLE_INSTRUCTIONS",
    "MKL_FAST_MEMORY_LIMIT", "MKL_NUM_STRIPES", "MKL_VML_DEBUG_CP",
    "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE",
    "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_CUDNN_USE_HEURISTIC_MODE_B", "TORCH_CUDNN_V8_API_DISABLED",
    "TORCH_LINALG_PREFER_CUSOLVER", "TORCH_LINEAR_FLATTEN_3D",
    "TORCH_MKLDNN_MATMUL_MIN_DIM", "TORCH_MKLDNN_MATMUL_MIN_SIZE",
)  # fmt: skip
"""Variables that choose kernels or precision; numbers of threads are not among them, as the job sets these itself.
Found as strings in the libraries of torch 2.13 and NumPy (oneDNN reads each of its own by two prefixes)."""
_TUNABLES: Final = "GLIBC_TUNABLES"
"""The C library's: `glibc.cpu.…` chooses among several sines and exponentials, others are about memory alone."""
_CPU_TUNABLE: Final = "glibc.cpu."

_CPUINFO: Final = Path("/proc/cpuinfo")
_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_MODEL_FIELDS: Final = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU variant", "CPU part")
_NO_ARITHMETIC: Final = frozenset({"clflush", "clflushopt", "clwb", "crc32", "aes", "sha", "sha1", "sha2", "pmull"})


def describe_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the kernel-choosing variables that are set. Values that are not UTF-8 are escaped."""
    found = {name: environment[name] for name in VARIABLES if environment.get(name)}
    tunables = [part for part in environment.get(_TUNABLES, "").split(":") if part.startswith(_CPU_TUNABLE)]
    if tunables:
        found[_TUNABLES] = ":".join(tunables)
    return {name: value.encode("utf-8", "backslashreplace").decode() for name, value in found.items()}


def describe_cpu() -> dict[str, Any]:
    """Return the processor's architecture, vendor and model, instruction set extensions and cache sizes."""
    import torch

    known = torch.cpu.get_capabilities()
    features = sorted(name for name, value in known.items() if value is True and name not in _NO_ARITHMETIC)
    return {
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "model": _model(),
        "features": " ".join(features),
        "caches": _caches(),
    }


def _model() -> str | None:
    """Return vendor and model numbers of the first processor; None if the kernel does not say."""
    try:
        first = _CPUINFO.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return None
    fields = dict(re.findall(r"^([^:\n]*?)[ \t]*:[ \t]*(.*)$", first, re.MULTILINE))
    return " ".join(fields[name] for name in _MODEL_FIELDS if name in fields) or None


def _caches() -> str | None:
    """Return each data cache's size and the number of processors that share it; None if the kernel does not say."""
    try:
        found = [_cache(folder) for folder in sorted(_CACHES.glob("index*"))]
    except OSError:
        return None
    return " ".join(text for text in found if text) or None


def _cache(folder: Path) -> str | None:
    kind, size, shared = ((folder / name).read_text().strip() for name in ("type", "size", "shared_cpu_map"))
    return None if kind == "Instruction" else f"{size}/{int(shared.replace(',', ''), 16).bit_count()}"

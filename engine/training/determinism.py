"""Switch torch to deterministic arithmetic, once, before the first tensor."""

from __future__ import annotations

import os

import torch

CUBLAS_WORKSPACE = ":4096:8"
"""The workspace of cuBLAS. The bits depend on it: another size selects other kernels."""


def switch_on(threads: int) -> None:
    """Make every torch operation deterministic or an error, with `threads` CPU threads.

    Strict mode, not `warn_only`: only then are the backward passes of the fused attention kernels deterministic. The
    bits depend on the number of threads, so it is always set here: torchrun and other programs set OMP_NUM_THREADS.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACE
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # Filling new memory only guards against reads of uninitialised values, and costs up to 15%. No bits depend on it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

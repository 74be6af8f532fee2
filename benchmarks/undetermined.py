"""The program without torch's deterministic mode, for determinism.py: free to take whichever kernels are fastest.

Of `switch_on` in engine/training/determinism.py only the number of threads is left, and that TF32 is off, which is
another precision. The product has no such switch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def switch_on(threads: int) -> None:
    """In place of `engine.training.determinism.switch_on`."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


if __name__ == "__main__":
    import entrypoint
    from engine.training import determinism

    determinism.switch_on = switch_on
    sys.exit(entrypoint.main(sys.argv[1:], os.environ))

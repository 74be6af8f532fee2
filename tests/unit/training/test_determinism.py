"""Deterministic arithmetic, in a process of its own: these switches are global."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, os, torch
from engine.training import determinism
determinism.switch_on(3)
print(json.dumps({
    "strict": torch.are_deterministic_algorithms_enabled(),
    "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    "cudnn": [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32],
    "tf32": torch.backends.cuda.matmul.allow_tf32,
    "fill": torch.utils.deterministic.fill_uninitialized_memory,
    "threads": torch.get_num_threads(),
    "workspace": os.environ["CUBLAS_WORKSPACE_CONFIG"],
}))
"""


def test_everything_is_switched_on():
    environment = {"OMP_NUM_THREADS": "2", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {
        "strict": True,
        "warn_only": False,
        "cudnn": [True, False, False],
        "tf32": False,
        "fill": False,
        "threads": 3,
        "workspace": ":4096:8",
    }

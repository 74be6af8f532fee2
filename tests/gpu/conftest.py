"""GPU tests: skipped, with the reason, where no CUDA device is visible. Inputs are those of the integration tests."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import DEVICE
from tests.integration.conftest import dataset, model, scratch, task, v_model, xl_model

__all__ = ["dataset", "model", "scratch", "task", "v_model", "xl_model"]


@pytest.fixture(autouse=True)
def _cuda():
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device is visible")

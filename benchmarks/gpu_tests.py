"""Plugin of pytest for benchmarks/gpu.py: a line of JSON for each test as it ends, so that a time limit loses none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import pytest

FILE_VARIABLE: Final = "GPU_TESTS_RESULTS"
"""The environment variable that names the file."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a test's outcome: when it has run, or when it was skipped or failed before that or after it."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1)}
    if not report.passed:
        row["message"] = str(report.longrepr)[-3000:]
    with Path(os.environ[FILE_VARIABLE]).open("a") as file:
        file.write(json.dumps(row) + "\n")

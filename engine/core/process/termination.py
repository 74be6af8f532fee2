"""Write a container's last message where Kubernetes reads it. Uses the standard library only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""The file in which Kubernetes expects a container's last message, at most 4096 bytes."""


def write_termination_message(message: str, path: Path = TERMINATION_LOG) -> None:
    """Write the last message to Kubernetes' file, if that exists."""
    with contextlib.suppress(OSError):
        if not os.access(path, os.W_OK):
            return
        path.write_bytes(message.encode(errors="replace")[:4096])

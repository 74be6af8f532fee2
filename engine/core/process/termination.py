"""The machine's place for a container's last message. The standard library alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last message, 4096 bytes at most."""


def write_termination_message(message: str, path: Path = TERMINATION_LOG) -> None:
    """Leave the last message where Kubernetes looks for it, if there is such a place."""
    with contextlib.suppress(OSError):
        if not os.access(path, os.W_OK):
            return
        path.write_bytes(message.encode(errors="replace")[:4096])

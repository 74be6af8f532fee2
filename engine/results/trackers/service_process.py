"""Follow a training for one tracking service: `entrypoint.py tracker NAME`, started by the job (`services.py`).

Reads JSON lines from standard input until it ends. After an error it writes a line `{"error": …}` to standard output.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from engine.core.errors import first_line
from engine.results.trackers.registry import SERVICES
from engine.results.trackers.service import Followed, Service, Shown

FAILED: Final = 1
_ORPHAN_SECONDS: Final = 30
"""The time for the end of a process whose job was killed."""


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Follow one training. Return 0, or 1 after an error, which is told to the job."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)  # the job ends it
    told = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no message
    try:
        _follow(argv[0], sys.stdin.buffer)
    except Exception as error:
        os.write(told, json.dumps({"error": first_line(error)}).encode() + b"\n")
        return FAILED
    return 0


def _follow(name: str, lines: Iterable[bytes]) -> None:
    service: Service | None = None
    for line in lines:
        message: dict[str, Any] = json.loads(line)
        if "follow" in message:
            service = SERVICES[name].open(Followed(**message["follow"]))
        elif service is not None:
            _tell(service, message)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_ORPHAN_SECONDS)
    if service is not None:
        service.close()


def _tell(service: Service, message: Mapping[str, Any]) -> None:
    if "values" in message:
        service.log(message["step"], message["values"])
    if "pictures" in message:
        shown = [
            Shown(one["name"].removesuffix(".png"), one["prompt"], base64.b64decode(one["png"]))
            for one in message["pictures"]
        ]
        service.pictures(message["step"], shown)

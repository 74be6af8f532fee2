"""Report progress to Kubeflow Trainer 2.2 or newer, which shows it in the TrainJob's status (`trainerStatus`).

Trainer tells the pod where by KUBEFLOW_TRAINER_SERVER_URL, KUBEFLOW_TRAINER_SERVER_CA_CERT and
KUBEFLOW_TRAINER_SERVER_TOKEN: docs/user-guides/trainjob-progress.md of github.com/kubeflow/trainer.
"""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError

from engine.results.trackers.service import Followed, Shown

_URL, _CA, _TOKEN = (f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "CA_CERT", "TOKEN"))
_SECONDS: Final = 5.0
"""The least time between two reports, as Trainer's guide asks."""
_TIMEOUT_SECONDS: Final = 4.0


class Kubeflow:
    """Sends the share of the task's steps that are trained, the time that is left, and the latest numbers.

    A report that Trainer does not take is left out, and the next one is sent all the same.
    """

    def __init__(self, followed: Followed) -> None:
        missing = [name for name in (_URL, _CA, _TOKEN) if not os.environ.get(name)]
        if missing:
            raise RuntimeError(
                f"{missing[0]} is not set: the job does not run as a TrainJob of Kubeflow Trainer 2.2 or newer with "
                "the feature gate TrainJobStatus"
            )
        self._followed = followed
        self._context = ssl.create_default_context(cafile=os.environ[_CA])
        self._begun = self._sent = time.monotonic()
        self._step = followed.step
        self._values: dict[str, float] = {}
        self._problem: Exception | None = None
        self._send()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        self._values |= values
        if time.monotonic() - self._sent >= _SECONDS:
            self._send()

    def pictures(self, step: int, pictures: Sequence[Shown]) -> None:
        """Do nothing: a TrainJob's status has no images."""

    def close(self) -> None:
        """Send the last numbers. Raises OSError if Trainer did not take them."""
        self._send()
        if self._problem is not None:
            raise self._problem

    def _send(self) -> None:
        self._sent = time.monotonic()
        request = urllib.request.Request(
            os.environ[_URL],
            data=json.dumps({"trainerStatus": self._status()}).encode(),
            headers={
                "Authorization": f"Bearer {Path(os.environ[_TOKEN]).read_text().strip()}",  # Kubernetes renews it
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=self._context):
                self._problem = None
        except (URLError, TimeoutError) as error:
            self._problem = error

    def _status(self) -> dict[str, Any]:
        about = self._followed
        trained = max(0, self._step - about.step)
        status: dict[str, Any] = {
            "progressPercentage": 100 * (self._step - about.start_step) // max(1, about.stop_step - about.start_step),
            "metrics": [{"name": name, "value": f"{value:.6g}"} for name, value in self._values.items()],
            "lastUpdatedTime": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if trained:
            seconds = (time.monotonic() - self._begun) / trained
            status["estimatedRemainingSeconds"] = round(seconds * (about.stop_step - self._step))
        return status

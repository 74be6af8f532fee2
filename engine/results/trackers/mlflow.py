"""Log to MLflow: to the server of MLFLOW_TRACKING_URI, else to files in `OUT/mlruns/`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine.results.trackers.service import Followed, Shown

_RUN_TAG: Final = "sd_lora_task.run"
_FLUSH_SECONDS: Final = 1.0
_MAX_METRICS: Final = 500
"""The number of metrics of one request; MLflow takes 1000."""


class MLflow:
    """Logs to one run, which is found by a tag. Metrics of steps that it has already are left out."""

    def __init__(self, followed: Followed) -> None:
        # Without a server there are files; MLflow 3 wants to be told that this is meant.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI") or Path(followed.folder, "mlruns").as_uri()
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._run: str = self._find(followed) or self._create(followed)
        self._known: dict[str, int] = {}
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        self._client.log_dict(self._run, dict(followed.task), "task.json")

    def _find(self, followed: Followed) -> str | None:
        found = self._client.search_runs([self._experiment()], f"tags.`{_RUN_TAG}` = '{followed.run}'", max_results=1)
        if not found:
            return None
        run: str = found[0].info.run_id
        self._client.update_run(run, status="RUNNING")
        return run

    def _create(self, followed: Followed) -> str:
        run: str = self._client.create_run(
            self._experiment(), tags={_RUN_TAG: followed.run}, run_name=followed.name
        ).info.run_id
        for key, value in _flat(followed.task):
            self._client.log_param(run, key, value)
        return run

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "sd-lora-task"
        found = self._client.get_experiment_by_name(name)
        experiment: str = found.experiment_id if found else self._client.create_experiment(name)
        return experiment

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for name, value in values.items():
            if step > self._last(name):
                self._waiting.append(self._metric(name, value, now, step))
        if len(self._waiting) >= _MAX_METRICS or time.monotonic() - self._sent >= _FLUSH_SECONDS:
            self._flush()

    def _last(self, name: str) -> int:
        """Return the last step of which the run had this metric when it was opened; -1 if there is none."""
        if name not in self._known:
            history = self._client.get_metric_history(self._run, name)
            self._known[name] = max((metric.step for metric in history), default=-1)
        return self._known[name]

    def _flush(self) -> None:
        waiting, self._waiting, self._sent = self._waiting, [], time.monotonic()
        for start in range(0, len(waiting), _MAX_METRICS):
            self._client.log_batch(self._run, metrics=waiting[start : start + _MAX_METRICS])

    def pictures(self, step: int, pictures: Sequence[Shown]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for picture in pictures:
                path = Path(folder, f"step-{step:06}-{picture.name}.png")
                path.write_bytes(picture.png)
                self._client.log_artifact(self._run, str(path), "validation")

    def close(self) -> None:
        self._flush()
        self._client.set_terminated(self._run)


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, inner in value.items():
        found += _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else [(f"{prefix}{key}", inner)]
    return found

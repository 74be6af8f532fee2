"""Write TensorBoard's event files to `OUT/tensorboard/`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.results.trackers.service import Followed, Shown


class TensorBoard:
    """Writes event files: numbers, images, and the task as text."""

    def __init__(self, followed: Followed) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(Path(followed.folder, "tensorboard")), flush_secs=10)
        if followed.step:  # TensorBoard forgets what an interrupted process wrote of the steps after this one
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(followed.step + 1, session_log=start)
        text = "\n".join(f"    {line}" for line in json.dumps(dict(followed.task), indent=2).splitlines())
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        tensor = tensor_pb2.TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        self._add(followed.step, "task", tensor=tensor, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(step, name, simple_value=value)

    def pictures(self, step: int, pictures: Sequence[Shown]) -> None:
        for picture in pictures:
            png = picture.png
            width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
            image = self._summaries.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
            self._add(step, f"validation/{picture.name}", image=image)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, tag: str, **value: Any) -> None:
        summary = self._summaries.Summary
        self._write(step, summary=summary(value=[summary.Value(tag=tag, **value)]))

    def _write(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, **what))

"""Log to Weights & Biases, whose own variables choose server, project and mode: WANDB_API_KEY, WANDB_PROJECT, …"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from engine.results.trackers.service import Followed, Shown


class WeightsAndBiases:
    """Logs to one run, which is resumed by a later process of the same chain. Steps that it has already are ignored."""

    def __init__(self, followed: Followed) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "sd-lora-task",
            id=os.environ.get("WANDB_RUN_ID") or followed.run,
            name=os.environ.get("WANDB_NAME") or followed.name,
            resume="allow",
            dir=followed.folder,
            config=dict(followed.task),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, allow_val_change=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Sequence[Shown]) -> None:
        from PIL import Image

        shown = {
            f"validation/{picture.name}": self._wandb.Image(Image.open(io.BytesIO(picture.png)), caption=picture.prompt)
            for picture in pictures
        }
        self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()

"""Runs the finetuning task of a checkout of the reference trainer, for compare.py: CHECKOUT TASK OUTPUT.

`sd_task.task_runner` imports every task's libraries (mediapipe, compel, controlnet_aux), which finetuning does not use:
an empty package of that name stands in its place.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path


def main() -> None:
    checkout, task, output = (Path(argument).resolve() for argument in sys.argv[1:])
    sys.path.insert(0, str(checkout))
    for name in ("task_runner", "task_runner.inference_task"):
        package = types.ModuleType(f"sd_task.{name}")
        package.__path__ = [str(checkout / "sd_task" / name.replace(".", "/"))]
        sys.modules[package.__name__] = package
    output.mkdir(parents=True)
    os.chdir(output)  # it reads config.yml from the working folder

    from sd_task.task_args.finetune_task import FinetuneLoraTaskArgs
    from sd_task.task_runner.finetune_task.finetune_lora import run_finetune_lora_task

    run_finetune_lora_task(FinetuneLoraTaskArgs.model_validate(json.loads(task.read_text())), output_dir=str(output))


if __name__ == "__main__":
    main()

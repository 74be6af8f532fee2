"""Train a LoRA on Replicate, by the job's own entry point: cog.yaml names `train`."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path as Folder

from cog import BaseModel, Input, Path, Secret

ENTRYPOINT = Folder(__file__).with_name("entrypoint.py")


class TrainingOutput(BaseModel):
    """The files of `checkpoint/`, as one tar: the LoRA for Diffusers and for web interfaces, and the training state."""

    weights: Path


def train(
    task: str = Input(description="The task as JSON: docs/task.md. `dataset.name` is set if `images` is given."),
    images: Path = Input(description="A zip of the images, with captions beside them", default=None),  # noqa: B008
    hf_token: Secret = Input(description="A token for private or gated models on the Hub", default=None),  # noqa: B008
) -> TrainingOutput:
    """Run the task in a folder of its own.

    Raises:
        RuntimeError: the job has failed; the message is that of its result.json.
    """
    folder = Folder(tempfile.mkdtemp())
    wanted = json.loads(task)
    if images is not None:
        with zipfile.ZipFile(images) as archive:
            archive.extractall(folder / "images")
        wanted.setdefault("dataset", {})["name"] = str(folder / "images")
    (folder / "task.json").write_text(json.dumps(wanted))
    environment = dict(os.environ)
    if hf_token is not None:
        environment["HF_TOKEN"] = hf_token.get_secret_value()
    command = [sys.executable, ENTRYPOINT, "--task", folder / "task.json", "--output-dir", folder / "out"]
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        result = folder / "out" / "result.json"
        said = json.loads(result.read_text())["message"] if result.exists() else "see the log"
        raise RuntimeError(f"the job ended with code {code}: {said}")
    with tarfile.open(folder / "weights.tar", "w") as archive:
        archive.add(folder / "out" / "checkpoint", arcname="checkpoint")
    return TrainingOutput(weights=Path(folder / "weights.tar"))

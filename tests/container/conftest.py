"""What the container tests share: one small task, and what it gives undisturbed."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.containers import CALLER, ROOT, give, missing_engine, succeed

DEMO = json.loads((ROOT / "examples/demo/task.json").read_text())
# The demo's, but short, and as the image has its files.
TASK = DEMO | {
    "model": {"name": "/app/assets/base-emoji"},
    "dataset": {"name": "/app/assets/datasets/emoji-high-contrast"},
    "validation": {"num_images": 1},
    "train_args": DEMO["train_args"] | {"batch_size": 4, "num_train_steps": 40, "max_train_steps": 40},
    "lora": {"rank": 4},
    "transforms": {"center_crop": True, "random_flip": True},
    "dataloader_num_workers": 2,
}


@pytest.fixture(scope="session", autouse=True)
def engine():
    if reason := missing_engine():
        # CI has just built the image: an engine that is gone is a failure there.
        (pytest.fail if os.environ.get("REQUIRE_ENGINE") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    """A person's folder with a task in it."""
    folder = tmp_path_factory.mktemp("task")
    folder.chmod(0o755)
    (folder / "task.json").write_text(json.dumps(TASK))
    return give(folder, CALLER)


@pytest.fixture(scope="session")
def made_by_docker(task_folder, tmp_path_factory):
    """The README's command in an empty place: Docker itself makes `./out`. What every other run is compared with."""
    return succeed(tmp_path_factory.mktemp("whole") / "out", task=task_folder)


@pytest.fixture
def out(tmp_path):
    """A person's empty output folder."""
    folder = tmp_path / "out"
    folder.mkdir(mode=0o755)
    return give(folder, CALLER)

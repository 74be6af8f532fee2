"""Inputs that all tests of the program share: built once, never changed."""

from __future__ import annotations

import pytest

from tests.support.forks import fork_server
from tests.support.harness import succeed, using_scratch
from tests.support.pipelines import complaints_of, one_thread
from tests.support.tiny import build_dataset, build_sd, build_sdxl


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    with using_scratch(folder):
        yield folder


@pytest.fixture(scope="module")
def server(scratch, tmp_path_factory):
    """Runs of the program with torch, each in a forked child that is watched from the inside."""
    with fork_server(tmp_path_factory.mktemp("forks"), heavy=True) as started:
        yield started


@pytest.fixture(name="one_thread")
def _one_thread():
    """PyTorch in this process computes as the program does."""
    with one_thread():
        yield


@pytest.fixture
def complaints():
    """What Diffusers and PEFT warn of."""
    with complaints_of("diffusers", "peft") as lines:
        yield lines


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return build_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="session")
def v_model(tmp_path_factory):
    """One whose scheduler says v-prediction."""
    return build_sd(tmp_path_factory.mktemp("models") / "sd-v", prediction_type="v_prediction", seed=1)


@pytest.fixture(scope="session")
def xl_model(tmp_path_factory):
    return build_sdxl(tmp_path_factory.mktemp("models") / "sdxl", seed=2)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Eight images of several shapes, with lists of captions."""
    return build_dataset(tmp_path_factory.mktemp("datasets") / "images", 8, captions="list")


@pytest.fixture(scope="session")
def task(model, dataset):
    """Ten steps of 3 x 2 images over 8 images, with everything random switched on; images of few denoising steps."""
    return {
        "model": {"name": str(model)},
        "dataset": {"name": str(dataset)},
        "validation": {"num_images": 1, "num_inference_steps": 8},
        "train_args": {
            "learning_rate": 1e-3,
            "batch_size": 3,
            "gradient_accumulation_steps": 2,
            "num_train_steps": 10,
            "max_train_steps": 10,
            "scale_lr": False,
            "resolution": 64,
            "lr_scheduler": {"lr_scheduler": "cosine", "lr_warmup_steps": 3},
        },
        "lora": {"rank": 2},
        "transforms": {"center_crop": False, "random_flip": True},
        "seed": 7,
    }


@pytest.fixture(scope="session")
def short_task(task):
    """The same, but two steps long."""
    return task | {"train_args": task["train_args"] | {"num_train_steps": 2, "max_train_steps": 2}}


@pytest.fixture(scope="session")
def whole(task, tmp_path_factory):
    """The task in one go."""
    return succeed(task, tmp_path_factory.mktemp("whole") / "out")

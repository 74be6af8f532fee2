"""The real services, read by their own readers: each step once through an interruption, in one run."""

import json
import os
from pathlib import Path

import pytest

from engine.core import console
from engine.results.history import StepReport
from engine.results.trackers import services
from engine.results.trackers.services import Services
from tests.support.reports import png
from tests.unit.results.trackers.test_services import followed

pytestmark = pytest.mark.long
"""Their libraries take seconds to import."""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Follow steps `start + 1` to `stop` of a training, whose numbers are the same whenever they are trained."""
    monkeypatch.setattr(console, "_log", console._Log())
    monkeypatch.setattr(services, "CLOSE_SECONDS", 60.0)  # the imports alone may take longer than a job waits
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def train(name, start, stop):
        found = Services([name])
        found.begin(lambda: followed(tmp_path, step=start, task={"seed": 7, "lora": {"rank": 2}}))
        found.phase("train")
        for step in range(start + 1, stop + 1):
            found.step(StepReport(step, 1 / step, 1e-4, 0.5))
        found.held_out_loss(stop, 0.25)
        found.pictures(stop, {"0.png": png()}, {"0.png": "a cat"})
        found.close()
        assert console.notes() == []
        return tmp_path

    return train


def test_tensorboard(train):
    """In TensorBoard's own reader. The second process goes on at step 2: the third was not saved."""
    pytest.importorskip("tensorboard", reason="needs requirements-trackers.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("tensorboard", 0, 3)
    folder = train("tensorboard", 2, 5) / "tensorboard"
    found = EventAccumulator(str(folder))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert {*found.Tags()["scalars"]} == {
        *(f"train/{name}" for name in ("loss", "learning_rate", "grad_norm", "images_per_second")),
        "heldout/loss",
    }
    image = found.Images("validation/0")[-1]
    assert (image.step, image.width, image.height, image.encoded_image_string) == (5, 64, 64, png())
    (text,) = found.Tensors("task")[-1].tensor_proto.string_val
    assert json.loads(text) == {"seed": 7, "lora": {"rank": 2}}


def test_mlflow(train):
    """In MLflow's own client, with a store of files."""
    mlflow = pytest.importorskip("mlflow", reason="needs requirements-trackers.txt")
    train("mlflow", 0, 3)
    folder = train("mlflow", 2, 5)
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=Path(folder, "mlruns").as_uri())
    experiment = client.get_experiment_by_name("sd-lora-task")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(step, 1 / step) for step in range(1, 6)]
    assert run.data.params == {"seed": "7", "lora.rank": "2"} and run.info.status == "FINISHED"
    assert run.data.tags["sd_lora_task.run"] == "0123456789abcdef"
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "validation")}
    assert artifacts == {"validation/step-000003-0.png", "validation/step-000005-0.png"}


def records_in(data):
    """The records of W&B's file: seven bytes, then LevelDB's log format, in blocks of 32 KB."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 0x8000 - at % 0x8000 < 7:  # no header fits there
            at += 0x8000 - at % 0x8000
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb(train, monkeypatch):
    """Offline: both processes write to the run of the same ID, whose files hold W&B's own messages."""
    pytest.importorskip("wandb", reason="needs requirements-trackers.txt")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    train("wandb", 0, 3)
    folder = train("wandb", 2, 5)
    files = sorted(Path(folder, "wandb").glob("offline-run-*/run-0123456789abcdef.wandb"))
    steps = []
    for file in files:
        for data in records_in(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                assert (record.run.run_id, record.run.project) == ("0123456789abcdef", "sd-lora-task")
            if record.HasField("history"):
                items = {(item.key or ".".join(item.nested_key)): item.value_json for item in record.history.item}
                steps += [(json.loads(items["_step"]), json.loads(items["train/loss"]))] * ("train/loss" in items)
    assert {step: loss for step, loss in steps} == {step: 1 / step for step in range(1, 6)}
    assert len(list(Path(folder, "wandb").glob("offline-run-*/files/media/images/validation/0_5_*.png"))) == 1

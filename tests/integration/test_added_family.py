"""A family that the engine does not know trains like its own, by a folder of two files and one row of the registry."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from safetensors.torch import load_file

import entrypoint
from engine.models import registry
from engine.models.objectives import registry as objectives
from engine.models.objectives.flow import sampler as flow_sampler
from tests.support import tiny, toy_family, toy_objective
from tests.support.harness import Finished, clean_environment
from tests.support.toy_family import model as toy_model

STEPS = 4
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def added(monkeypatch):
    """The registry with the toy family."""
    monkeypatch.setitem(registry.FAMILIES, toy_family.SPEC.pipeline, toy_family.SPEC)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return toy_family.build_toy(folder / "toy"), tiny.build_dataset(folder / "images", count=5)


@pytest.fixture
def task(inputs, tmp_path):
    """Writes a task of so many steps, and returns its path."""
    model, dataset = inputs

    def write(num_steps, **train_args):
        args = {"batch_size": 2, "resolution": 64, "learning_rate": 0.01, "max_train_steps": STEPS}
        value = {
            "model": {"name": str(model)},
            "dataset": {"name": str(dataset)},
            "validation": {"num_images": 1, "num_inference_steps": 2},
            "train_args": {**args, "num_train_steps": num_steps, "train_text_encoder": True, **train_args},
            "lora": {"rank": 2},
        }
        path = tmp_path / f"task-{num_steps}.json"
        path.write_text(json.dumps(value))
        return path

    return write


def run(task: Path, out: Path, *flags: object, code: int = 0) -> Finished:
    """Run the program in a fork of this process, which has the added family."""
    argv = ["--task", str(task), "--output-dir", str(out), *map(str, flags)]
    environment = clean_environment(out.parent)

    def job() -> None:
        os.environ.clear()
        os.environ.update(environment)
        os._exit(entrypoint.main(argv, environment))

    process = FORK.Process(target=job)
    process.start()
    process.join(120)
    assert process.exitcode == code
    return Finished(code=code, stdout="", stderr="", out=out)


def test_a_chain_and_a_resumed_task_have_the_bytes_of_one(added, task, tmp_path, monkeypatch):
    whole = run(task(STEPS), tmp_path / "whole")
    run(task(1), tmp_path / "first")
    chain = run(task(STEPS), tmp_path / "chain", "--checkpoint", tmp_path / "first" / "checkpoint")
    with monkeypatch.context() as patch:
        end_at_third_loss(patch)
        run(task(STEPS), tmp_path / "resumed", code=128 + signal.SIGTERM)
    assert not (tmp_path / "resumed" / "checkpoint").exists()
    resumed = run(task(STEPS), tmp_path / "resumed")
    assert resumed.result["resumed_from_step"] == 3
    assert chain.weights() == whole.weights() == resumed.weights()

    found = load_file(whole.out / "checkpoint" / "pytorch_lora_weights.safetensors")
    layers = {name.rsplit(".lora_", 1)[0] for name in found}
    blocks = {f"transformer.blocks.{k}.{layer}" for k in (0, 1) for layer in ("to_q", "to_v")}
    assert layers == blocks | {"text_encoder.mix"} and all(bool(tensor.any()) for tensor in found.values())


def end_at_third_loss(patch):
    """Send the job SIGTERM while it computes the third step."""
    loss, calls = toy_model.Toy.loss, count(1)

    def counted(self, batch, options):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, batch, options)

    patch.setattr(toy_model.Toy, "loss", counted)


def test_its_lora_starts_another_training(added, task, tmp_path):
    run(task(1), tmp_path / "first")
    lora = tmp_path / "lora"
    lora.mkdir()
    name = "pytorch_lora_weights.safetensors"
    (lora / name).write_bytes((tmp_path / "first" / "checkpoint" / name).read_bytes())
    started = run(task(1, learning_rate=1e-30), tmp_path / "second", "--checkpoint", lora)
    assert (started.out / "checkpoint" / name).read_bytes() == (lora / name).read_bytes()


def test_it_trains_for_an_added_objective(added, task, tmp_path, monkeypatch):
    plain = run(task(STEPS), tmp_path / "diffusion")
    spec = replace(toy_family.SPEC, objective="toy")
    monkeypatch.setitem(objectives.OBJECTIVES, "toy", toy_objective.SPEC)
    monkeypatch.setitem(registry.FAMILIES, spec.pipeline, spec)
    monkeypatch.setattr(toy_model, "SPEC", spec)
    run(task(1), tmp_path / "first")
    other = run(task(STEPS), tmp_path / "toy")
    chain = run(task(STEPS), tmp_path / "chain", "--checkpoint", tmp_path / "first" / "checkpoint")
    assert chain.weights() == other.weights() != plain.weights()


@pytest.fixture
def by_flow_matching(inputs, monkeypatch):
    """The toy family as one that is trained by flow matching."""
    spec = replace(toy_family.SPEC, objective="flow", usual_sampling="logit_normal", token_side=8)
    monkeypatch.setitem(registry.FAMILIES, spec.pipeline, spec)
    monkeypatch.setattr(toy_model, "SPEC", spec)
    monkeypatch.setattr(toy_model.Toy, "spec", spec)
    monkeypatch.setattr(toy_model, "load_scheduler", flow_sampler.load_scheduler)
    path = inputs[0] / "scheduler" / "scheduler_config.json"
    before = path.read_bytes()
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    yield
    path.write_bytes(before)


def test_a_chain_by_flow_matching_has_the_bytes_of_one(by_flow_matching, task, tmp_path):
    keys = {"loss_type": "huber", "flow_shift": "resolution", "logit_mean": -0.5, "max_timestep": 900}
    whole = run(task(STEPS, **keys), tmp_path / "whole")
    run(task(1, **keys), tmp_path / "first")
    chain = run(task(STEPS, **keys), tmp_path / "chain", "--checkpoint", tmp_path / "first" / "checkpoint")
    assert chain.weights() == whole.weights()
    found = load_file(whole.out / "checkpoint" / "pytorch_lora_weights.safetensors")
    assert all(bool(tensor.any() and tensor.isfinite().all()) for tensor in found.values())
    run(task(STEPS, snr_gamma=5.0), tmp_path / "refused", code=2)


def test_the_plan_needs_no_torch(task, tmp_path):
    script = (
        "import sys, entrypoint\n"
        "from engine.models import registry\n"
        "from tests.support import toy_family\n"
        "registry.FAMILIES.update(toy_family.ROW)\n"
        f"code = entrypoint.main(['--task', {str(task(2))!r}, '--output-dir', {str(tmp_path / 'out')!r}, '--plan'], "
        f"{clean_environment(tmp_path)!r})\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    root = Path(entrypoint.__file__).parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory " in done.stdout and "tokens " in done.stdout and "not predicted" not in done.stdout

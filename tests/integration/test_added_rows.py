"""Methods and optimizers that are not the default, and one of each in no registry: whole jobs, cut and interrupted."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import entrypoint
from engine.commands import plan
from engine.job import prepare
from engine.task.task import Dataset, Model, Task
from engine.training.methods import registry as methods
from engine.training.optimizers import registry as optimizers
from engine.training.trainer import Trainer
from tests.support.harness import clean_environment, folder_bytes
from tests.support.toy_method import TOY_METHOD
from tests.support.toy_optimizer import TOY_OPTIMIZER

TASK = Task(model=Model(name="m"), dataset=Dataset(name="d"))
"""The defaults."""
CASES = [
    *(("method", name) for name in methods.METHODS if name != TASK.training_type),
    ("method", "toy"),
    *(("optimizer", name) for name in optimizers.OPTIMIZERS if name != TASK.train_args.optimizer),
    ("optimizer", "toy"),
]
"""What the tasks ask for: its seam, and its name there. The defaults are trained in test_chain.py."""
QUICK = {"prodigy", "toy"}
"""The optimizers of the quick run: one with numbers of the whole training, and one in no registry. The others' are
tested without jobs in test_every_optimizer_in_training.py."""
PARAMETERS = [
    pytest.param(case, marks=() if case[0] == "method" or case[1] in QUICK else pytest.mark.slow) for case in CASES
]


@pytest.fixture(params=PARAMETERS, ids=" ".join)
def case(request, monkeypatch):
    """One of `CASES`: all tasks of the test ask for it."""
    monkeypatch.setitem(methods.METHODS, "toy", TOY_METHOD)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "toy", TOY_OPTIMIZER)
    (seam, name), read = request.param, prepare.read_task

    def read_task(settings):
        task = read(settings)
        if seam == "method":
            return replace(task, training_type=name)
        return replace(task, train_args=replace(task.train_args, optimizer=name))

    for module in (prepare, plan):
        monkeypatch.setattr(module, "read_task", read_task)
    return request.param


@pytest.fixture(autouse=True)
def left_as_it_was():
    """A job has a process of its own; what it sets there is put back."""
    handlers = {
        signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def run(short_task, tmp_path, case):
    """Run the program in this process: up to a step, from a checkpoint; returns its exit code and output folder."""

    def run_job(name, stop, *flags):
        args = short_task["train_args"] | {"num_train_steps": stop, "max_train_steps": 4}
        task = short_task | {"train_args": args, "checkpoint_every_n_steps": 3}
        task |= {"validation": {"num_images": 1, "num_inference_steps": 2}}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(task))
        out = tmp_path / name
        environment = clean_environment(tmp_path) | {"SAVE_SECONDS": "3600"}
        arguments = ["--task", path, "--output-dir", out, *flags]
        return entrypoint.main(list(map(str, arguments)), environment), out

    return run_job


def weights(out):
    """The files that must not depend on how the training was cut."""
    files = folder_bytes(out / "checkpoint")
    return {name: data for name, data in files.items() if is_weights(name)}


def is_weights(name):
    return name.endswith(".safetensors")


def test_a_chain_and_an_interrupted_job_are_the_job_in_one_go(run, case, monkeypatch):
    code, whole = run("whole", 4)
    assert code == 0
    files = weights(whole)
    method, slots = rows(case)
    published = {name for name in folder_bytes(whole / "checkpoint") if method.step_ending(name)}
    assert method.is_complete(published)
    steps = {f"steps/000003{method.step_ending(name)}" for name in published}
    assert set(weights(whole)) == {"state.safetensors", *filter(is_weights, {*published, *steps})}
    slots_there = {name.partition(".")[0] for name in load_file(whole / "checkpoint" / "state.safetensors")}
    assert slots_there - {"adapter", "initial"} == slots

    assert run("first", 2)[0] == 0
    code, second = run("second", 2, "--checkpoint", whole.with_name("first") / "checkpoint")
    assert code == 0 and weights(second) == files

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", stopped_in_step(3))
        code, interrupted = run("interrupted", 4)
    assert code == 128 + signal.SIGTERM and not (interrupted / "checkpoint").exists()
    code, again = run("interrupted", 4)
    assert code == 0 and json.loads((again / "result.json").read_text())["resumed_from_step"] == 3
    assert folder_bytes(again / "checkpoint") == folder_bytes(whole / "checkpoint")


def rows(case):
    """The rows of the method and of the optimizer, of which the case says one."""
    named = {"method": TASK.training_type, "optimizer": TASK.train_args.optimizer} | dict([case])
    # A LoRA has small matrices.
    return methods.METHODS[named["method"]], {*optimizers.OPTIMIZERS[named["optimizer"]].layout((2, 8))}


def stopped_in_step(number):
    """`Trainer.train_step`, during whose step of this number the program is sent a signal."""
    train_step = Trainer.train_step

    def wrapper(trainer, *args):
        if trainer.step + 1 == number:
            signal.raise_signal(signal.SIGTERM)
        return train_step(trainer, *args)

    return wrapper


def test_weights_to_start_from_and_a_chain_of_another_kind(run, case, monkeypatch, capsys):
    _, first = run("first", 2)
    seam, name = case
    if seam == "method":
        for file in filter(methods.METHODS[name].step_ending, folder_bytes(first / "checkpoint")):
            (first / "alone" / file).parent.mkdir(parents=True, exist_ok=True)
            (first / "checkpoint" / file).rename(first / "alone" / file)
        assert run("warm", 2, "--checkpoint", first / "alone")[0] == 0
        return
    capsys.readouterr()
    monkeypatch.undo()
    code, _ = run("other", 2, "--checkpoint", first / "checkpoint")
    words = f"optimizer is '{name}' in the checkpoint, at its default in this task"
    assert code == 5 and words in capsys.readouterr().err


def test_the_plan(run, capsys):
    code, out = run("planned", 4, "--plan")
    assert code == 0 and "steps 0 to 4 of 4" in capsys.readouterr().out and not out.exists()

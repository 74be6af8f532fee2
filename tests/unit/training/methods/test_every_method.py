"""What each training method of the registry promises, and one that is not in it, on the tiny Stable Diffusion."""

import copy
import json

import pytest
import torch

from engine.commands.compare import compare
from engine.core.errors import CheckpointError, NonFiniteError
from engine.models import registry as families
from engine.models.family import PRECISIONS, LoadArgs
from engine.task.task import Dataset, Lora, Model, Task, TrainArgs
from engine.training.methods import registry
from engine.training.methods.registry import METHODS
from engine.training.methods.swapping import swapped
from tests.support import tiny
from tests.support.abouts import about_of, base_of
from tests.support.fakes import CPU
from tests.support.toy_method import TOY_METHOD

ROWS = {**METHODS, "toy": TOY_METHOD}
CASES = {
    "lora": ("lora", Lora(rank=2)),
    "LoftQ": ("lora", Lora(rank=2, init_lora_weights="loftq", target_modules=("to_q", "conv1"))),
    "LoKr": ("lokr", Lora(rank=2, factor=2, alpha=1.0, target_modules=("to_q", "conv1", "conv_in"))),
    "full": ("full", Lora()),
    "full, bf16": ("full", Lora()),
    "toy": ("toy", Lora()),
}


def test_every_row_has_a_case():
    assert {name for name, _ in CASES.values()} == ROWS.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("model"))


def load(folder, task):
    row = families.detect(json.loads((folder / "model_index.json").read_text()))
    args = LoadArgs(
        folder=folder,
        variants=dict.fromkeys(row.weighted),
        dtype=PRECISIONS[task.mixed_precision],
        float32=frozenset(ROWS[task.training_type].trained_weights(row, task)),
        device=CPU,
        prediction_type="epsilon",
        caption_tokens=75,
    )
    return families.load(row, args)


@pytest.fixture(params=CASES)
def task(request, monkeypatch):
    monkeypatch.setattr(registry, "METHODS", ROWS)
    name, options = CASES[request.param]
    args = TrainArgs(train_text_encoder=name in ("lora", "full"))
    return Task(
        model=Model(name="m"),
        dataset=Dataset(name="d"),
        training_type=name,
        lora=options,
        train_args=args,
        mixed_precision="bf16" if "bf16" in request.param else "no",
    )


@pytest.fixture
def family(folder, task):
    return load(folder, task)


def attach(family, task, start=None):
    return registry.attach(family, task, CPU, start=start, warm_start=None)


def change(trainable, amount=0.01):
    """As a training would."""
    with torch.no_grad():
        for i, parameter in enumerate(trainable.parameters.values()):
            parameter.add_(amount * torch.linspace(-1, 1 + i % 50, parameter.numel()).reshape(parameter.shape))
    trainable.refresh()


@torch.no_grad()
def prediction(family):
    dtype = next(family.denoiser.parameters()).dtype
    states = torch.linspace(-1, 1, 77 * tiny.HIDDEN).reshape(1, 77, tiny.HIDDEN)
    return family.denoiser(torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8).to(dtype), 3, states.to(dtype)).sample


def published(trainable, folder):
    """All files that it publishes, with their bytes."""
    files = trainable.export(about(folder))
    return {name: content if isinstance(content, bytes) else b"".join(content()) for name, content in files.items()}


def about(folder, step=3):
    spec = families.detect(json.loads((folder / "model_index.json").read_text()))
    base = base_of(
        "sha256:0", spec=spec, config=lambda component: json.loads((folder / component / "config.json").read_text())
    )
    return about_of(base, global_step=step)


def test_its_parameters_are_all_that_is_trained(family, task):
    trainable = attach(family, task)
    parameters = trainable.parameters
    assert list(parameters) == sorted(parameters) and all(p.dtype == torch.float32 for p in parameters.values())
    grouped = [name for group in trainable.groups for name in group]
    assert sorted(grouped) == list(parameters) and all(trainable.groups)
    assert len(trainable.groups) == 1 + task.train_args.train_text_encoder
    roots = [family.denoiser, *family.text_encoders.values()]
    with trainable.step() as trained:
        own = {*map(id, parameters.values()), *map(id, trained)}
        assert {id(p) for root in roots for p in root.parameters() if p.requires_grad} <= own
        assert [tensor.shape for tensor in trained] == [p.shape for p in parameters.values()]


def test_another_one_goes_on_from_its_state(folder, family, task):
    trainable = attach(family, task)
    change(trainable)
    start = {name: tensor.clone() for name, tensor in trainable.start.items()}
    other_family = load(folder, task)
    other = attach(other_family, task, start=start)
    other.restore(trainable.state())
    assert all(torch.equal(p, other.parameters[name]) for name, p in trainable.parameters.items())
    assert torch.equal(prediction(family), prediction(other_family))
    assert published(trainable, folder) == published(other, folder)


def test_its_published_files_are_found_and_compared(folder, family, task, tmp_path):
    method = ROWS[task.training_type]
    trainable = attach(family, task)
    for name in ("one", "again", "other"):
        if name == "other":
            change(trainable)
        for path, content in published(trainable, folder).items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        assert registry.method_in(tmp_path / name) is method
    same, found = (method.distances(tmp_path / "one", tmp_path / name) for name in ("again", "other"))
    assert set(same.apart.values()) == {0.0} and max(found.apart.values()) > 0
    assert found.apart.keys() == found.norms.keys()
    assert len(compare(tmp_path / "one", tmp_path / "other")) == 3


def test_its_state_takes_no_memory(family, task):
    trainable = attach(family, task)
    state, before = trainable.state(), copy.deepcopy(trainable.state())
    change(trainable)
    assert all(
        torch.equal(state[name], p) and not state[name].requires_grad for name, p in trainable.parameters.items()
    )
    assert not all(torch.equal(state[name], before[name]) for name in before)


def test_what_is_restored_is_copied(family, task):
    trainable = attach(family, task)
    saved = copy.deepcopy(trainable.state())
    before = copy.deepcopy(saved)
    trainable.restore(saved)
    change(trainable)
    assert all(torch.equal(saved[name], before[name]) for name in before)


@pytest.mark.parametrize("damage", ["missing", "more", "shape"])
def test_another_state_is_refused(family, task, damage):
    trainable = attach(family, task)
    state = trainable.state()
    name = next(iter(state))
    tensor = state.pop(name)
    if damage == "more":
        state |= {name: tensor, f"{name}.more": tensor}
    elif damage == "shape":
        state[name] = tensor[:-1]
    with pytest.raises(CheckpointError):
        trainable.restore(state)


def test_the_baseline_does_not_depend_on_the_training(family, task):
    trainable = attach(family, task)
    with trainable.baseline():
        before = prediction(family)
    change(trainable, 0.5)
    with trainable.baseline():
        assert torch.equal(prediction(family), before)
    assert not torch.equal(prediction(family), before)


def test_values_of_its_own_come_back(folder, family, task):
    trainable = attach(family, task)
    change(trainable)
    own, files, predicted = copy.deepcopy(trainable.state()), published(trainable, folder), prediction(family)
    values = {name: tensor * 0.5 for name, tensor in own.items()}
    given = copy.deepcopy(values)
    with swapped(trainable.parameters, values):
        trainable.refresh()
        assert all(torch.equal(p, given[name]) for name, p in trainable.parameters.items())
        assert all(torch.equal(values[name], tensor) for name, tensor in own.items())
        assert not torch.equal(prediction(family), predicted) and published(trainable, folder) != files
    trainable.refresh()
    assert all(torch.equal(p, own[name]) for name, p in trainable.parameters.items())
    assert torch.equal(prediction(family), predicted) and published(trainable, folder) == files


def test_it_publishes_the_files_that_its_row_names(folder, family, task):
    row, trainable = ROWS[task.training_type], attach(family, task)
    before = published(trainable, folder)
    change(trainable)
    files = published(trainable, folder)
    assert row.is_complete(files.keys()) and not row.is_complete({"state.safetensors"})
    assert all(files[name] != before[name] for name in files if name.endswith(".safetensors"))
    assert files == published(trainable, folder)
    assert len({row.step_ending(name) for name in files}) == len(files)
    assert all(row.is_step_ending(row.step_ending(name)) for name in files)
    assert row.step_ending("state.safetensors") is None and not row.is_step_ending("/state.safetensors")


def test_what_is_not_finite_is_not_published(family, task):
    trainable = attach(family, task)
    trainable.require_finite(3)
    with torch.no_grad():
        next(iter(trainable.parameters.values())).view(-1)[0] = torch.inf
    trainable.refresh()
    with pytest.raises(NonFiniteError, match="after step 3"):
        trainable.require_finite(3)


def test_the_saved_values_are_as_many_as_its_row_says(family, task):
    """By them the disk space is predicted; LoftQ's convolutions have no start values."""
    trainable = attach(family, task)
    trained, start = (sum(map(torch.numel, named.values())) for named in (trainable.parameters, trainable.start))
    copies = ROWS[task.training_type].copies(task)
    assert (copies - 2) * trained < start <= (copies - 1) * trained

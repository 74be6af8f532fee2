"""What every objective promises: those of the engine, and one that it does not know."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.models.family import LoadArgs
from engine.models.objectives import registry
from engine.models.objectives.objective import LossOptions
from engine.task.task import TrainArgs
from tests.support import toy_objective

SCHEDULERS = {
    "diffusion": {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    "toy": {},
}


@pytest.fixture(params=list(SCHEDULERS))
def name(request, monkeypatch):
    monkeypatch.setitem(registry.OBJECTIVES, "toy", toy_objective.SPEC)
    return request.param


@pytest.fixture
def objective(name):
    args = LoadArgs(
        folder=Path(),
        variants={},
        dtype=torch.float32,
        device=torch.device("cpu"),
        prediction_type="epsilon",
        caption_tokens=75,
    )
    return registry.load(name, SCHEDULERS[name], args)


def samples(*shape):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)


def test_every_objective_is_here():
    assert SCHEDULERS.keys() == {*registry.OBJECTIVES, "toy"}


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 4, 2, 8, 8), (3, 5)])
def test_samples_of_any_rank_are_noised_each_by_itself(objective, shape):
    (latents, noise), timesteps = samples(*shape), torch.tensor([0, 500, 999])
    for function in (objective.add_noise, objective.target):
        found = function(latents, noise, timesteps)
        assert found.shape == shape and found.dtype == torch.float32
        alone = [function(latents[k : k + 1], noise[k : k + 1], timesteps[k : k + 1]) for k in range(3)]
        torch.testing.assert_close(found, torch.cat(alone))


def test_more_noise_at_later_timesteps(objective):
    latents, noise = samples(1, 4, 8, 8)
    distances = [
        (objective.add_noise(latents, noise, torch.tensor([timestep])) - noise).norm() for timestep in (0, 500, 999)
    ]
    assert distances == sorted(distances, reverse=True)


def test_by_default_all_samples_count_alike_by_their_squared_errors(objective):
    timesteps, (differences, _) = torch.tensor([0, 999]), samples(2, 3)
    assert objective.weights(timesteps, LossOptions()) is None
    assert torch.equal(objective.errors(differences, timesteps, LossOptions())(differences), differences.square())


def test_the_denoiser_is_told_a_time_that_grows_with_the_noise(objective):
    latents, _ = samples(3, 4, 8, 8)
    times = objective.model_time(latents, torch.tensor([3, 500, 999]))
    assert times.shape == (3,) and times.sort().values.equal(times) and len(set(times.tolist())) == 3


def test_timesteps_are_indices_of_the_models(name):
    spec = registry.OBJECTIVES[name]
    total = spec.num_train_timesteps(SCHEDULERS[name])
    found = spec.timesteps(TrainArgs(min_timestep=10), total)
    assert found.begin == 10 and found.end <= total


def test_rows_are_known_without_torch():
    script = "import sys, engine.models.objectives.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[4])

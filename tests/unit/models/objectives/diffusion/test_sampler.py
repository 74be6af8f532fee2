"""The scheduler that draws validation images: the base model's, or an error that says what it is."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from engine.core.errors import ModelError
from engine.models.family import LoadArgs
from engine.models.objectives.diffusion.sampler import load_scheduler
from engine.models.objectives.diffusion.schedulers import SUBSTITUTES
from tests.support import tiny


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def args_for(folder):
    return LoadArgs(
        folder=folder,
        variants={},
        dtype=torch.float32,
        device=torch.device("cpu"),
        prediction_type="v_prediction",
        caption_tokens=75,
    )


class TestScheduler:
    def edit(self, folder, **changes):
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def test_is_the_models_with_the_trainings_prediction(self, folder):
        self.edit(folder, _class_name="DDIMScheduler")
        found = load_scheduler(args_for(folder))
        assert isinstance(found, DDIMScheduler) and found.config.prediction_type == "v_prediction"
        assert found.config.beta_end == 0.012

    @pytest.mark.parametrize(
        "name, expected", [("PNDMScheduler", DDIMScheduler), ("EulerDiscreteScheduler", EulerDiscreteScheduler)]
    )
    def test_zero_terminal_snr_takes_a_scheduler_that_starts_from_noise_alone(self, folder, name, expected):
        self.edit(folder, _class_name=name)
        found = load_scheduler(dataclasses.replace(args_for(folder), zero_terminal_snr=True))
        assert type(found) is expected and found.config.timestep_spacing == "trailing"
        assert not found.config.get("clip_sample")
        assert found.alphas_cumprod[-1] < 1e-7 and found.config.prediction_type == "v_prediction"
        found.set_timesteps(30)
        assert int(found.timesteps[0]) == 999

    @pytest.mark.parametrize("name", ["Nonsense", "UNet2DConditionModel", "logging", None, 3, "__doc__"])
    def test_a_class_that_is_no_scheduler(self, folder, name):
        self.edit(folder, _class_name=name)
        with pytest.raises(ModelError, match="is not a Diffusers scheduler"):
            load_scheduler(args_for(folder))

    @pytest.mark.parametrize("name", list(SUBSTITUTES))
    def test_one_that_needs_a_package_is_replaced_and_the_betas_stay(self, folder, name):
        self.edit(folder, _class_name="DDIMScheduler")
        expected = load_scheduler(args_for(folder))
        self.edit(folder, _class_name=name, use_beta_sigmas=True)
        found = load_scheduler(args_for(folder))
        assert type(found).__name__ == SUBSTITUTES[name].name and not found.config.use_beta_sigmas
        assert torch.equal(found.betas, expected.betas)

    @pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
    def test_a_scheduler_of_another_kind_of_diffusion(self, folder, name):
        """It has no betas, and would silently be given the usual ones."""
        self.edit(folder, _class_name=name)
        with pytest.raises(ModelError, match=f"{name} has no betas"):
            load_scheduler(args_for(folder))

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_train_timesteps": "x"},
            {"num_train_timesteps": 0},
            {"num_train_timesteps": 10**10},
            {"beta_schedule": "odd"},
            {"beta_start": []},
            {"beta_end": 3.0},
        ],
    )
    def test_malformed_values(self, folder, changes):
        self.edit(folder, **changes)
        with pytest.raises(ModelError, match="scheduler does not load"):
            load_scheduler(args_for(folder))

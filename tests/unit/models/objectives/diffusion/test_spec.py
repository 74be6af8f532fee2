"""The rules of the diffusion objective for tasks."""

import pytest

from engine.core.errors import TaskError
from engine.models.objectives.diffusion.spec import DIFFUSION
from engine.task.task import TrainArgs


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_schedule_that_ends_in_noise_needs_a_prediction_that_is_not_of_the_noise(prediction_type):
    """CogVideoX's ends so: trained to predict the noise, it drew black clips."""
    config = {"rescale_betas_zero_snr": True}
    DIFFUSION.check_task(TrainArgs(), prediction_type, "APipeline", {})
    if prediction_type == "v_prediction":
        DIFFUSION.check_task(TrainArgs(), prediction_type, "APipeline", config)
        return
    with pytest.raises(TaskError, match="the base model's noise schedule needs prediction_type v_prediction"):
        DIFFUSION.check_task(TrainArgs(), prediction_type, "APipeline", config)

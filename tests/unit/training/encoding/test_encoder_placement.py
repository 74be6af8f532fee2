"""The encoders are on the device while something is encoded, and only then."""

import torch

from engine.training.encoding import step_window
from tests.support.encoding import Setup, good
from tests.support.fakes import CPU


def test_the_encoders_leave_the_device_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(step_window, "WINDOW_VISITS", 8)
    setup = Setup(good(), tmp_path)
    setup.run()
    assert setup.family.devices == [CPU, torch.device("cpu")] * 3


def test_the_encoders_are_not_moved_for_what_is_encoded_already(tmp_path):
    Setup(good(), tmp_path, center_crop=True).run()
    setup = Setup(good(), tmp_path, center_crop=True)
    setup.run()
    assert setup.family.encoded_images == setup.family.encoded_captions == setup.family.devices == []

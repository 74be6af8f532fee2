"""The encoders are on the device while something is encoded, and only then; some are freed where memory is short."""

from dataclasses import replace

import torch

from engine.training.encoding import step_window
from engine.training.encoding.encoder_placement import EncoderPlacement
from tests.support.encoding import Setup, good
from tests.support.fakes import CPU, LinearFamily


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


def test_text_encoders_are_freed_and_announced_before_they_are_loaded_again():
    family, said = LinearFamily(), []
    family.spec = replace(family.spec, fixed_text_encoders=("text_encoder",))
    encoder = family.parts["text_encoder"]
    placement = EncoderPlacement(family, CPU, loading_again=lambda: said.append("again"))
    placement.bring_text_encoders()
    assert placement.frees and said == []
    placement.release()
    assert family.parts.keys() == {"unet"}
    placement.bring()
    assert said == [], "images need none"
    placement.bring_text_encoders()
    assert said == ["again"]
    family.parts["text_encoder"] = encoder
    kept = EncoderPlacement(family, CPU)
    kept.bring_text_encoders()
    kept.release()
    assert "text_encoder" in family.parts


def test_encoders_stay_on_a_cpu_where_they_are_not_freed():
    family = LinearFamily()
    assert EncoderPlacement(family, torch.device("cpu")).stays
    assert not EncoderPlacement(family, torch.device("cpu"), loading_again=lambda: None).stays
    assert not EncoderPlacement(family, torch.device("cuda")).stays

"""The encoders are on the device while something is encoded, or at first; some are freed where memory is short."""

from dataclasses import replace

import torch

from engine.training.encoding import step_window
from engine.training.encoding.encoder_placement import EncoderPlacement
from tests.support.encoding import BATCH, Setup, frozen, good
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


class TestStay:
    """Where encoders and denoiser fit on the device together, windows begin with one step."""

    DEVICE = torch.device("meta")
    """Another device than the CPU; this family has nothing to move."""

    def encoded(self, folder, *, stays, **options):
        setup = Setup(good(), folder, device=self.DEVICE, stays=stays, starts_small=stays, **options)
        return frozen(setup.run()), setup

    def test_encoders_leave_after_the_last_window_and_the_examples_are_the_same(self, tmp_path):
        """The windows have 1, 4 and 7 steps: there are no more."""
        expected, usual = self.encoded(tmp_path / "a", stays=False)
        found, setup = self.encoded(tmp_path / "b", stays=True)
        assert found == expected
        assert setup.family.devices == usual.family.devices == [self.DEVICE, CPU]

    def test_after_a_window_of_full_size_they_are_moved_as_usual(self, tmp_path, monkeypatch):
        """The windows have 1, 3, 3, 3 and 2 steps; with random crops each is encoded."""
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 3 * BATCH)
        _, setup = self.encoded(tmp_path, stays=True)
        assert setup.family.devices == [self.DEVICE, CPU] * 4

    def test_steps_of_more_visits_than_a_window_end_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(step_window, "WINDOW_VISITS", BATCH)
        _, setup = self.encoded(tmp_path / "a", stays=True, micro_batches=2)
        _, usual = self.encoded(tmp_path / "b", stays=False, micro_batches=2)
        assert setup.family.devices == usual.family.devices

    def test_images_and_held_out_losses_in_between_leave_them_there(self):
        family = LinearFamily()
        placement = EncoderPlacement(family, self.DEVICE, stays=True)
        placement.bring()
        placement.release()
        assert placement.stays and family.devices == [self.DEVICE]
        placement.end_stay()
        placement.release()
        assert not placement.stays and family.devices == [self.DEVICE, CPU]

"""Visits to encodings: the same whatever the windows, workers and cache, also around unreadable images."""

import pytest

from engine.core.errors import Interrupted
from engine.training.encoding import step_window
from tests.support.encoding import Setup, frozen, good, reference, with_unreadable


@pytest.mark.parametrize("images", [good(), with_unreadable()], ids=["good", "unreadable"])
class TestEqualToTheDefinition:
    @pytest.mark.parametrize("window", [1, 2, 6, 10, 1024])
    @pytest.mark.parametrize("center_crop", [True, False])
    def test_whatever_the_windows(self, images, tmp_path, monkeypatch, window, center_crop):
        monkeypatch.setattr(step_window, "WINDOW_VISITS", window)
        setup = Setup(images, tmp_path, center_crop=center_crop)
        assert frozen(setup.run()) == frozen(reference(setup))

    @pytest.mark.parametrize("start", [1, 5, 11])
    def test_wherever_it_begins(self, images, tmp_path, start):
        whole = Setup(images, tmp_path / "a").run()
        assert frozen(Setup(images, tmp_path / "b", start=start).run()) == frozen(whole[start:])

    def test_with_workers(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 16)
        alone, helped = Setup(images, tmp_path / "a"), Setup(images, tmp_path / "b", workers=2)
        assert frozen(helped.run()) == frozen(alone.run())
        assert set(helped.said) == set(alone.said)

    def test_whatever_the_cache_holds(self, images, tmp_path):
        cold = Setup(images, tmp_path, center_crop=True)
        expected = frozen(cold.run())
        warm = Setup(images, tmp_path, center_crop=True)
        assert frozen(warm.run()) == expected
        assert warm.family.encoded_images == [] == warm.family.encoded_captions
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        for path in files[::2]:
            path.write_bytes(b"damaged")
        assert frozen(Setup(images, tmp_path, center_crop=True).run()) == expected


def test_each_image_and_caption_is_encoded_once(tmp_path):
    setup = Setup(good(), tmp_path, flip=False, center_crop=True)
    setup.run()  # twelve steps of two over seven images: more than three epochs
    assert len(setup.family.encoded_images) == 7
    assert sorted(setup.family.encoded_captions) == [f"caption {k}" for k in range(7)]


def test_a_signal_is_looked_for_between_encodings(tmp_path):
    setup = Setup(good(), tmp_path)

    def stop():
        raise Interrupted(15, "stopped")

    setup.on_stop = stop
    with pytest.raises(Interrupted):
        setup.run()
    assert len(setup.family.encoded_images) == 1

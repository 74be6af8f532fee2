"""Visits to encodings: the same whatever the windows, workers and cache, also around unreadable images."""

import pytest

from engine.core.errors import Interrupted
from engine.training.encoding import step_window
from tests.support.encoding import BATCH, STEPS, Setup, frozen, good, reference, with_unreadable
from tests.support.threads import in_threads


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


GOOD = good()


class TestAhead:
    """Encoding into the cache what the steps from one on need, before the denoiser is loaded."""

    @pytest.mark.parametrize("center_crop", [True, False])
    @pytest.mark.parametrize("images", [GOOD, with_unreadable()], ids=["good", "unreadable"])
    @pytest.mark.parametrize("shuffle_tags", [True, False])
    def test_training_then_encodes_no_caption(self, images, tmp_path, monkeypatch, center_crop, shuffle_tags):
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 6)
        options = {
            "center_crop": center_crop,
            "shuffle_tags": shuffle_tags,
            "texts": [(f"a{k}, b, c",) for k in range(7)],
        }
        expected = Setup(images, tmp_path / "a", **options).run()
        ahead = setup_apart(images, tmp_path / "b", **options)
        assert ahead.encoder.encode_ahead(3) == STEPS
        training = setup_apart(images, tmp_path / "b", start=3, **options)
        assert frozen(training.run()) == frozen(expected[3:])
        if images is GOOD or center_crop:  # else random crops of unreadable images are found while training
            assert training.family.encoded_captions == []
        repeated = len(training.family.encoded_images)
        assert repeated == 0 if center_crop else len(ahead.family.encoded_images) < repeated

    def test_each_is_encoded_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 6)
        ahead = setup_apart(good(), tmp_path, center_crop=True, flip=False)
        loads, load = [], ahead.encoder._cache.load
        ahead.encoder._cache.load = lambda key: loads.append(key) or load(key)
        ahead.encoder.encode_ahead(0)
        assert len(ahead.family.encoded_images) == len(ahead.family.encoded_captions) == 7
        assert len(loads) == 14, "what an earlier window has needed is not read again"

    @pytest.mark.parametrize("max_bytes, reached", [(0, 0), (5 * 392, 0), (11 * 392, 3), (12 * 392, STEPS)])
    def test_it_ends_where_the_cache_may_be_full(self, tmp_path, monkeypatch, max_bytes, reached):
        """Seven images and captions of 392 bytes together, six of them in the first window of three steps."""
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 6)
        ahead = setup_apart(good(), tmp_path, center_crop=True, flip=False, max_bytes=max_bytes)
        assert ahead.encoder.encode_ahead(0) == reached

    def test_it_ends_where_nothing_can_be_written(self, tmp_path):
        (tmp_path / "encoded").write_text("a file")
        assert setup_apart(good(), tmp_path).encoder.encode_ahead(0) == 0

    def test_a_signal_is_looked_for(self, tmp_path):
        setup = setup_apart(good(), tmp_path)

        def stop():
            raise Interrupted(15, "stopped")

        setup.on_stop = stop
        with pytest.raises(Interrupted):
            setup.encoder.encode_ahead(0)

    def test_processes_share_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 8)
        options = {"center_crop": True, "micro_batches": 2}
        expected = frozen(Setup(with_unreadable(), tmp_path / "alone", **options).run())

        def one(processes):
            ahead = setup_apart(with_unreadable(), tmp_path / "both", processes=processes, **options)
            reached = ahead.encoder.encode_ahead(0)
            training = setup_apart(with_unreadable(), tmp_path / "both", processes=processes, **options)
            return reached, ahead, frozen(training.run()), training

        found = in_threads(2, one)
        for rank, (reached, _, examples, training) in enumerate(found):
            assert reached == STEPS and training.family.encoded_captions == training.family.encoded_images == []
            assert examples == [step[rank * BATCH : (rank + 1) * BATCH] for step in expected]
        encoded = [image for _, ahead, _, _ in found for image in ahead.family.encoded_images]
        assert len(encoded) == len(set(encoded))


def setup_apart(images, cache, **options):
    """Return a setup in which text encoders are freed after use."""
    return Setup(images, cache, loading_again=lambda: None, **options)

"""Visits to encodings: the same whatever the windows, workers and cache, also around unreadable images."""

import json
import time
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from engine.core import rng
from engine.core.errors import DatasetError, Interrupted
from engine.core.files import stat_cache
from engine.data.dataset import fingerprints, open_dataset
from engine.data.media import transforms
from engine.task.plan.steps import StepRange
from engine.task.plan.visits import VisitStream
from engine.task.task import Dataset, Model, Task, TrainArgs, Transforms
from engine.training.encoding import visit_encoder
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.visit_encoder import VisitEncoder
from tests.support.fakes import CPU, FakeDataset, LinearFamily, png

SIZES = ((8, 8), (16, 8), (8, 12))
RESOLUTION = 8
STEPS, BATCH = 12, 2


def good(count=7):
    return [png(k, SIZES[k % 3]) for k in range(count)]


def with_unreadable(count=7):
    images = good(count)
    images[1] = None  # no file
    images[3] = b"not an image"  # no header
    images[4] = images[4][:90]  # a header, but it cannot be decoded
    images[5] = images[5][:-30]
    return images


class Setup:
    def __init__(
        self,
        images,
        cache_dir,
        *,
        workers=0,
        start=0,
        flip=True,
        center_crop=False,
        texts=None,
        seed=0,
        masks=None,
        order=None,
        dataset=None,
        **wanted,
    ):
        self.task = Task(
            model=Model(name="m"),
            dataset=Dataset(name="d", **wanted),
            train_args=TrainArgs(resolution=RESOLUTION, batch_size=BATCH),
            transforms=Transforms(random_flip=flip, center_crop=center_crop),
            dataloader_num_workers=workers,
            seed=seed,
        )
        self.dataset = dataset or FakeDataset(images, texts, masks=masks)
        self.family = LinearFamily(width=48)
        self.family.latent_shape = lambda height, width: (3, height // 2, width // 2)
        self.stream = VisitStream(
            seed=seed, num_rows=len(images), random_flip=flip, num_train_timesteps=1000, order=order
        )
        self.start = start
        self.said, self.stops = [], 0
        self.encoder = VisitEncoder(
            task=self.task,
            dataset=self.dataset,
            stream=self.stream,
            step_range=StepRange(
                num_rows=len(images),
                batch_size=BATCH,
                micro_batches=1,
                start_step=start,
                stop_step=STEPS,
                max_steps=STEPS,
            ),
            family=self.family,
            cache=EncodingCache(cache_dir, {}, max_bytes=1 << 24),
            device=CPU,
            check_stop=self.count_stop,
            report=self.said.append,
        )

    def count_stop(self):
        self.stops += 1

    def run(self):
        return [self.encoder.examples(step) for step in range(self.start, STEPS)]


def frozen(steps):
    """Examples as values that compare."""
    return [
        [
            (
                example.visit,
                {name: tensor.numpy().tobytes() for name, tensor in example.moments.items()},
                {name: tensor.numpy().tobytes() for name, tensor in example.conditioning.items()},
                {name: tensor.numpy().tobytes() for name, tensor in example.tokens.items()},
            )
            for example in examples
        ]
        for examples in steps
    ]


def reference(setup):
    """One visit after the other, straight from the definition: no windows, no cache, nothing remembered."""
    result = []
    family = LinearFamily(width=48)
    images = setup.dataset.images

    def readable(sample):
        try:
            data = images[sample] or b""
            size = transforms.image_size(data)
            view = transforms.geometry(size, target=(8, 8), center_crop=True, crop_words=(0, 0), flip=False)
            transforms.render(data, view)
        except transforms.UnreadableImage:
            return False
        return True

    usable = {sample for sample in range(len(images)) if readable(sample)}
    for visit in setup.stream.visits(setup.start * BATCH, (STEPS - setup.start) * BATCH):
        order = rng.permutation(setup.task.seed, "permutation", visit.epoch, len(images)).tolist()
        place = order.index(visit.sample)
        sample = next(s for s in order[place:] + order[:place] if s in usable)
        view = transforms.geometry(
            transforms.image_size(images[sample]),
            target=(RESOLUTION, RESOLUTION),
            center_crop=setup.task.transforms.center_crop,
            crop_words=visit.crop_words,
            flip=visit.flip,
        )
        captions = setup.dataset.captions(sample)
        caption = captions[int(rng.below(np.array([visit.caption_word], dtype=np.uint64), len(captions))[0])]
        moments = family.encode_image(transforms.render(images[sample], view))
        result.append(visit_encoder.Example(visit, moments, family.encode_caption(caption) | family.place(view)))
    return [result[k : k + BATCH] for k in range(0, len(result), BATCH)]


@pytest.mark.parametrize("images", [good(), with_unreadable()], ids=["good", "unreadable"])
class TestEqualToTheDefinition:
    @pytest.mark.parametrize("window", [1, 2, 6, 10, 1024])
    @pytest.mark.parametrize("center_crop", [True, False])
    def test_whatever_the_windows(self, images, tmp_path, monkeypatch, window, center_crop):
        monkeypatch.setattr(visit_encoder, "WINDOW_VISITS", window)
        setup = Setup(images, tmp_path, center_crop=center_crop)
        assert frozen(setup.run()) == frozen(reference(setup))

    @pytest.mark.parametrize("start", [1, 5, 11])
    def test_wherever_it_begins(self, images, tmp_path, start):
        whole = Setup(images, tmp_path / "a").run()
        assert frozen(Setup(images, tmp_path / "b", start=start).run()) == frozen(whole[start:])

    def test_with_workers(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr(visit_encoder, "WINDOW_VISITS", 16)
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


def test_unreadable_images_are_counted_and_said_once(tmp_path):
    setup = Setup(with_unreadable(), tmp_path)
    setup.run()
    assert len(setup.encoder.skipped) == 4
    assert sorted(line.partition(":")[0] for line in setup.said) == [f"skipping image image-{k}" for k in (1, 3, 4, 5)]


@pytest.mark.parametrize("bad", [None, b"", b"no image", png(0)[:90]], ids=["missing", "empty", "noise", "cut"])
def test_nothing_readable_is_a_dataset_error(tmp_path, bad):
    expected = r"^the dataset: none of its 3 images is readable, such as image-\d \(.+\); save them as PNG or JPEG, or"
    with pytest.raises(DatasetError, match=expected) as caught:
        Setup([bad] * 3, tmp_path).run()
    assert caught.value.code == 3


def test_one_readable_image_is_enough(tmp_path):
    steps = Setup([None, b"", png(2)], tmp_path).run()
    assert len(steps) == STEPS and all(len(examples) == BATCH for examples in steps)


def test_each_image_and_caption_is_encoded_once(tmp_path):
    setup = Setup(good(), tmp_path, flip=False, center_crop=True)
    setup.run()  # twelve steps of two over seven images: more than three epochs
    assert len(setup.family.encoded_images) == 7
    assert sorted(setup.family.encoded_captions) == [f"caption {k}" for k in range(7)]


def test_what_is_encoded_already_is_at_hand_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(visit_encoder, "WINDOW_VISITS", 3 * BATCH)
    expected, setup = Setup(good(), tmp_path / "a").run(), Setup(good(), tmp_path / "b")
    found = []
    for step in range(STEPS + 1):
        at_hand = setup.encoder.at_hand(step)
        assert bool(at_hand) == (step % 3 != 0), "a window is three steps"
        found += [at_hand] if at_hand else [setup.encoder.examples(step)] if step < STEPS else []
    assert frozen(found) == frozen(expected)


class TestLongSteps:
    """Steps of more visits than a window: 20 million of them must not take memory."""

    MICRO_BATCHES = 6

    def examples(self, folder, images=None):
        setup = Setup(images or good(), folder)
        setup.encoder._step_range = replace(setup.encoder._step_range, micro_batches=self.MICRO_BATCHES)
        return setup, [setup.encoder.examples(step) for step in range(2)]

    @pytest.mark.parametrize("images", [good(), with_unreadable()], ids=["good", "unreadable"])
    @pytest.mark.parametrize("window", [1, 2 * BATCH, 5 * BATCH])
    def test_the_examples_are_the_same(self, window, images, tmp_path, monkeypatch):
        _, expected = self.examples(tmp_path / "a", images)
        monkeypatch.setattr(visit_encoder, "WINDOW_VISITS", window)
        _, found = self.examples(tmp_path / "b", images)
        assert [len(step) for step in found] == [self.MICRO_BATCHES * BATCH] * 2
        assert frozen(found) == frozen(expected)

    def test_no_more_than_a_window_is_planned_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(visit_encoder, "WINDOW_VISITS", 2 * BATCH)
        setup, (step, _) = self.examples(tmp_path)
        counts, visits = [], setup.stream.visits
        setup.stream.visits = lambda start, count: counts.append(count) or visits(start, count)
        assert len(step[:BATCH]) == BATCH and counts == [2 * BATCH]
        step[BATCH : 2 * BATCH], step[2 * BATCH : 3 * BATCH]
        assert counts == [2 * BATCH] * 2

    def test_a_signal_need_not_wait_for_the_end_of_the_step(self, tmp_path, monkeypatch):
        monkeypatch.setattr(visit_encoder, "WINDOW_VISITS", 2 * BATCH)
        setup, (step, _) = self.examples(tmp_path)
        assert step[:BATCH]
        before = setup.stops
        assert step[BATCH : 2 * BATCH] and setup.stops == before + 1, "of the same window, which encodes nothing"

    def test_a_step_of_billions_costs_what_is_looked_at(self, tmp_path):
        setup = Setup(good(), tmp_path)
        setup.encoder._step_range = replace(setup.encoder._step_range, micro_batches=10**12)
        step = setup.encoder.examples(0)
        assert len(step) == 10**12 * BATCH and len(step[:BATCH]) == BATCH


def test_equal_images_are_encoded_once(tmp_path):
    setup = Setup([png(0)] * 5, tmp_path, flip=False, center_crop=True)
    setup.run()
    assert len(setup.family.encoded_images) == 1


def test_random_crops_do_not_fill_the_disk(tmp_path):
    setup = Setup([png(k, (32, 8)) for k in range(4)], tmp_path, texts=[("same",)] * 4)
    setup.run()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1, "the caption"


def test_captions_are_drawn_by_the_visit_from_the_samples_own(tmp_path):
    texts = [tuple(f"{k} {'x' * i}" for i in range(1 + k % 3)) for k in range(6)]
    setup = Setup(good(6), tmp_path, texts=texts)
    seen = {}
    family = LinearFamily()
    known = {family.encode_caption(t)["states"].numpy().tobytes(): t for own in texts for t in own}
    for examples in setup.run():
        for example in examples:
            text = known[example.conditioning["states"].numpy().tobytes()]
            assert text in texts[example.visit.sample]
            seen.setdefault(example.visit.sample, set()).add(text)
    assert any(len(found) > 1 for found in seen.values()), "more than one of a list is used"


def test_captions_are_tokenised_only_where_the_text_encoders_are_trained(tmp_path):
    texts = [(f"one {k}", f"other {k}") for k in range(7)]
    frozen_text, trained = (Setup(good(), tmp_path / name, texts=texts) for name in ("frozen", "trained"))
    args = replace(trained.task.train_args, train_text_encoder=True)
    trained.encoder._task = replace(trained.task, train_args=args)
    for ahead, later in zip(chain(*frozen_text.run()), chain(*trained.run()), strict=True):
        assert later.visit == ahead.visit and ahead.tokens == {}
        assert later.conditioning.keys() == {"corner"} == ahead.conditioning.keys() - {"states"}
        family = trained.family
        embedded = family.embed({name: ids[None] for name, ids in later.tokens.items()})
        assert torch.equal(embedded["states"][0], ahead.conditioning["states"])
    assert trained.family.encoded_captions == []


def test_the_encoders_leave_the_device_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(visit_encoder, "WINDOW_VISITS", 8)
    setup = Setup(good(), tmp_path)
    setup.run()
    assert setup.family.devices == [CPU, torch.device("cpu")] * 3


def test_the_encoders_are_not_moved_for_what_is_encoded_already(tmp_path):
    Setup(good(), tmp_path, center_crop=True).run()
    setup = Setup(good(), tmp_path, center_crop=True)
    setup.run()
    assert setup.family.encoded_images == setup.family.encoded_captions == setup.family.devices == []


def test_a_signal_is_looked_for_between_encodings(tmp_path):
    setup = Setup(good(), tmp_path)

    def stop():
        raise Interrupted(15, "stopped")

    setup.encoder._check_stop = stop
    with pytest.raises(Interrupted):
        setup.run()
    assert len(setup.family.encoded_images) == 1


class TestMasks:
    def masks(self):
        return [png(100 + k, SIZES[k % 3]) for k in range(6)] + [None]

    @pytest.mark.parametrize("center_crop", [True, False])
    def test_each_visit_has_its_images_mask_cut_like_the_image(self, tmp_path, center_crop):
        images, masks = good(), self.masks()
        setup = Setup(images, tmp_path, center_crop=center_crop, masks=masks, mask_column="mask")
        for example in (example for examples in setup.run() for example in examples):
            visit, found = example.visit, example.moments["mask"]
            view = transforms.geometry(
                transforms.image_size(images[visit.sample]),
                target=(RESOLUTION, RESOLUTION),
                center_crop=center_crop,
                crop_words=visit.crop_words,
                flip=visit.flip,
            )
            assert found.dtype == torch.float32 and found.shape == (1, 4, 4)
            if masks[visit.sample] is None:
                assert (found == 1).all()
            else:
                pixels = transforms.render_mask(masks[visit.sample], view, (4, 4), alpha=False)
                assert np.array_equal(found[0].numpy(), pixels.astype(np.float32) / np.float32(255))

    def test_the_cache_knows_masks_apart(self, tmp_path):
        images, masks = good(), self.masks()
        wanted = {"center_crop": True, "flip": False}
        plain = frozen(Setup(images, tmp_path, **wanted).run())
        first = frozen(Setup(images, tmp_path, **wanted, masks=masks, mask_column="m").run())
        again = Setup(images, tmp_path, **wanted, masks=masks, mask_column="m")
        assert frozen(again.run()) == first and again.family.encoded_images == []
        other = Setup(images, tmp_path, **wanted, masks=masks[::-1], mask_column="m")
        cold = Setup(images, tmp_path / "cold", **wanted, masks=masks[::-1], mask_column="m")
        assert frozen(other.run()) == frozen(cold.run()) != first
        alpha = Setup(images, tmp_path, **wanted, alpha_mask=True).run()
        assert all((example.moments["mask"] == 1).all() for examples in alpha for example in examples)
        assert frozen(Setup(images, tmp_path, **wanted).run()) == plain

    def test_an_image_whose_mask_is_unreadable_is_skipped(self, tmp_path):
        masks = [*self.masks()[:2], b"broken", *self.masks()[3:]]
        setup = Setup(good(), tmp_path, masks=masks, mask_column="m")
        shown = {example.conditioning["states"][1].item() for examples in setup.run() for example in examples}
        assert [name for name, _ in setup.encoder.skipped] == ["image-2"]
        assert float(sum(b"caption 2") % 97) not in shown


class TestWording:
    def test_captions_are_worded_and_shuffled_ones_leave_the_disk_alone(self, tmp_path):
        texts = [(f"a{k}, b, c, d",) for k in range(7)]
        wanted = {"trigger_word": "sks", "shuffle_tags": True, "keep_tokens": 1}
        setup = Setup(good(), tmp_path, texts=texts, **wanted)
        setup.run()
        said = setup.family.encoded_captions
        assert all(text.startswith("sks, a") and sorted(text[9:].split(", ")) == ["b", "c", "d"] for text in said)
        assert len(set(said)) > 7
        again = Setup(good(), tmp_path, texts=texts, **wanted)
        again.run()
        assert again.family.encoded_captions == said  # nothing was stored
        fixed = [Setup(good(), tmp_path, texts=texts, trigger_word="sks") for _ in range(2)]
        assert frozen(fixed[0].run()) == frozen(fixed[1].run()) and fixed[1].family.encoded_captions == []

    def test_the_cache_knows_captions_of_several_rows_apart(self, tmp_path):
        """Equal captions, another length: 75 is the default."""
        encoded = {}
        for tokens in (None, 75, 150, 225):
            setup = Setup(good(), tmp_path, max_caption_tokens=tokens)
            setup.run()
            encoded[tokens] = len(setup.family.encoded_captions)
        assert encoded[75] == 0 and encoded[None] == encoded[150] == encoded[225] > 0


def test_a_caption_spelled_like_an_images_address_is_still_a_caption(tmp_path):
    """The keys of images and captions share one cache, which jobs of strangers share too."""
    images = good(3)
    plain = Setup(images, tmp_path / "reference", center_crop=True, flip=False)
    plain.run()
    digest, size = plain.encoder._fact(0)
    view = transforms.geometry(size, target=(RESOLUTION, RESOLUTION), center_crop=True, crop_words=(0, 0), flip=False)
    address = json.dumps([digest, view.target[0], view.top, view.left, view.flip], separators=(",", ":"))
    Setup(images, tmp_path / "cache", texts=[(address,)] * 3, center_crop=True, flip=False).run()
    honest = Setup(images, tmp_path / "cache", center_crop=True, flip=False)
    assert frozen(honest.run()) == frozen(reference(honest))


def test_what_is_encoded_is_counted_as_what_it_is(tmp_path, capsys):
    """Mirrored or cut elsewhere, an image is encoded again; one that cannot be read is done with, too."""
    Setup(good(2), tmp_path / "a", flip=False, center_crop=True).run()
    Setup(good(2), tmp_path / "b", flip=True, center_crop=True).run()
    Setup([*good(2), None], tmp_path / "c", flip=False, center_crop=True).run()
    Setup(good(2), tmp_path / "a", flip=False, center_crop=True).run()  # all of it is in the cache
    said = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["encoding: 2/2 images", "encoding 2 images: 4/4 crops", "encoding: 2/2 images"]


class TestAChangeWhileTheJobRuns:
    """What is encoded is what the fingerprint was taken of; else the job ends, and the cache has no bit of it."""

    def opened(self, folder, cache):
        task = Task(model=Model(name="m"), dataset=Dataset(name=str(folder)))
        return open_dataset(task, cache_dir=cache, revision=None, report=lambda line: None)

    def folder(self, path):
        path.mkdir()
        for k, data in enumerate(good()):
            (path / f"{k}.png").write_bytes(data)
            (path / f"{k}.txt").write_text(f"caption {k}")
        return path

    def setup(self, folder, cache, **wanted):
        wanted = {"center_crop": True, "flip": False} | wanted
        return Setup(good(), cache, dataset=self.opened(folder, cache), **wanted)

    @pytest.mark.parametrize("moment", ["before it is planned", "while it is encoded"])
    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("change", ["swapped", "gone", "unreadable"])
    def test_it_ends_the_job_and_poisons_no_cache(self, tmp_path, moment, workers, change):
        folder = self.folder(tmp_path / "images")
        honest = frozen(self.setup(folder, tmp_path / "cold").run())
        setup = self.setup(folder, tmp_path / "cache", workers=workers)

        def swap():
            for path in folder.glob("*.png"):
                path.unlink()
                if change == "swapped":
                    path.write_bytes(png(100 + int(path.stem), SIZES[int(path.stem) % 3]))
                elif change == "unreadable":
                    path.write_bytes(b"")

        if moment == "before it is planned":
            swap()
        else:
            setup.encoder._check_stop = lambda: swap() if len(setup.family.encoded_images) == 1 else None
        with pytest.raises(DatasetError, match=r"^\d\.png has changed since the job began, .*start it again$"):
            setup.run()
        for path in folder.glob("*.png"):
            path.unlink()
        for k, data in enumerate(good()):
            (folder / f"{k}.png").write_bytes(data)
        assert frozen(self.setup(folder, tmp_path / "cache").run()) == honest

    def test_a_mask_likewise(self, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        for k, data in enumerate(good()):
            (folder / f"{k}.png").write_bytes(data)
            (folder / f"{k}-mask.png").write_bytes(png(100 + k, SIZES[k % 3]))
        rows = [{"file_name": f"{k}.png", "mask": f"{k}-mask.png", "text": ""} for k in range(7)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = Task(model=Model(name="m"), dataset=Dataset(name=str(folder), mask_column="mask"))
        dataset = open_dataset(task, cache_dir=tmp_path, revision=None, report=lambda line: None)
        assert dataset.mask_bytes(3) == png(103, SIZES[0])
        (folder / "3-mask.png").write_bytes(png(200, SIZES[0]))
        with pytest.raises(DatasetError, match=r"3-mask\.png has changed"):
            dataset.mask_bytes(3)

    def test_a_fingerprint_that_was_noted_pins_the_images_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(stat_cache, "SETTLED_NS", 0)
        monkeypatch.setattr(stat_cache, "_keeps_change_times", lambda device: True)
        folder = self.folder(tmp_path / "images")
        time.sleep(0.02)
        first = self.opened(folder, tmp_path / "cache")
        monkeypatch.setattr(fingerprints, "fingerprint", lambda parts: pytest.fail("it was not noted"))
        second = self.opened(folder, tmp_path / "cache")
        assert second.fingerprint == first.fingerprint
        (folder / "3.png").write_bytes(png(100))
        assert second.image_bytes(2) == good()[2]
        with pytest.raises(DatasetError, match=r"^3\.png has changed"):
            second.image_bytes(3)

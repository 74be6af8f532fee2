"""Images: encoded once each, through the cache, with their masks, and never other than they were."""

import json
import time
from typing import ClassVar

import numpy as np
import pytest
import torch

from engine.core.errors import DatasetError, NonFiniteError
from engine.core.files import stat_cache
from engine.core.limits import Limits
from engine.data.dataset import fingerprints
from engine.data.dataset.open import open_dataset
from engine.data.media import image
from engine.data.media.geometry import geometry
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
from tests.support.encoding import RESOLUTION, SIZES, Setup, frozen, good
from tests.support.fakes import png
from tests.support.shard_server import serving_shards
from tests.support.shards import shards, written


def test_equal_images_are_encoded_once(tmp_path):
    setup = Setup([png(0)] * 5, tmp_path, flip=False, center_crop=True)
    setup.run()
    assert len(setup.family.encoded_images) == 1


def test_random_crops_do_not_fill_the_disk(tmp_path):
    setup = Setup([png(k, (32, 8)) for k in range(4)], tmp_path, texts=[("same",)] * 4)
    setup.run()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1, "the caption"


def test_latents_that_are_not_finite_name_the_image_and_are_not_stored(tmp_path):
    setup = Setup(good(2), tmp_path)
    encode = setup.family.encode_pixels
    setup.family.encode_pixels = lambda pixels: {name: part * torch.nan for name, part in encode(pixels).items()}
    with pytest.raises(NonFiniteError, match=r"from image image-[01]: .*mixed_precision .*model\.components\.vae"):
        setup.run()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) <= 2, "captions alone"


class TestMasks:
    def masks(self):
        return [png(100 + k, SIZES[k % 3]) for k in range(6)] + [None]

    @pytest.mark.parametrize("center_crop", [True, False])
    def test_each_visit_has_its_images_mask_cut_like_the_image(self, tmp_path, center_crop):
        images, masks = good(), self.masks()
        setup = Setup(images, tmp_path, center_crop=center_crop, masks=masks, mask_column="mask")
        for example in (example for examples in setup.run() for example in examples):
            visit, found = example.visit, example.moments["mask"]
            view = geometry(
                image.image_size(images[visit.sample]),
                target=(RESOLUTION, RESOLUTION),
                center_crop=center_crop,
                crop_words=visit.crop_words,
                flip=visit.flip,
            )
            assert found.dtype == torch.float32 and found.shape == (1, 4, 4)
            if masks[visit.sample] is None:
                assert (found == 1).all()
            else:
                pixels = image.render_mask(masks[visit.sample], view, (4, 4), alpha=False)
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


def test_what_is_encoded_is_counted_as_what_it_is(tmp_path, capsys):
    """Mirrored or cut elsewhere, an image is encoded again; one that cannot be read is done with, too."""
    Setup(good(2), tmp_path / "a", flip=False, center_crop=True).run()
    Setup(good(2), tmp_path / "b", flip=True, center_crop=True).run()
    Setup([*good(2), None], tmp_path / "c", flip=False, center_crop=True).run()
    Setup(good(2), tmp_path / "a", flip=False, center_crop=True).run()  # all of it is in the cache
    said = [line.partition(",")[0].partition(" ")[2] for line in capsys.readouterr().err.splitlines()]  # after the time
    assert said == ["encoding: 2/2 images", "encoding 2 images: 4/4 crops", "encoding: 2/2 images"]


class TestAChangeWhileTheJobRuns:
    """What is encoded is what the fingerprint was taken of; else the job ends, and the cache has no bit of it."""

    def opened(self, folder, cache):
        wanted = Dataset(name=str(folder))
        return open_dataset(wanted, IMAGE, cache_dir=cache, revision=None, report=lambda line: None)

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
            setup.on_stop = lambda: swap() if len(setup.family.encoded_images) == 1 else None
        with pytest.raises(DatasetError, match=r"^\d\.png has changed since the job began; .*start it again$"):
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
        wanted = Dataset(name=str(folder), mask_column="mask")
        dataset = open_dataset(wanted, IMAGE, cache_dir=tmp_path, revision=None, report=lambda line: None)
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


class TestShardsOnAServer:
    """What is not on this machine is fetched once for each window, and only if it is to be encoded."""

    WANTED: ClassVar = {
        "plain": {},
        "masks": {"mask_column": "mask.png"},
        "alpha": {"alpha_mask": True},
    }

    def setup(self, opened, cache, *, keys, workers=0):
        return Setup(good(12), cache, dataset=opened, center_crop=True, flip=False, workers=workers, **keys)

    @pytest.mark.parametrize("case", WANTED)
    @pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
    def test_each_member_is_fetched_once_for_a_window(self, tmp_path, case, workers):
        keys = self.WANTED[case]
        source = {"image_column": "png", "mask_column": keys.get("mask_column")}
        files = shards(3, side=8, masks=True)
        folder = written(tmp_path / "folder", files)
        local = open_dataset(Dataset(name=str(folder), **source), IMAGE, **self.opening(tmp_path / "c"))
        reference = self.setup(local, tmp_path / "local", keys=keys).run()
        with serving_shards(files) as server:
            url = server.url("t-{000..002}.tar")
            remote = open_dataset(Dataset(url=url, **source), IMAGE, **self.opening(tmp_path / "cache"))
            server.requests.clear()
            setup = self.setup(remote, tmp_path / "remote", keys=keys, workers=workers)
            assert frozen(setup.run()) == frozen(reference)
            assert not server.whole()
            assert len(server.parts()) == len({wanted for wanted in server.requests}), "no part twice"
            assert len(server.parts()) == (18 if "mask_column" in keys else 12)
            server.requests.clear()
            again = self.setup(remote, tmp_path / "remote", keys=keys, workers=workers)
            assert frozen(again.run()) == frozen(reference)
            assert not server.requests, "all encodings are in the cache"

    def opening(self, cache):
        limits = Limits(allow_private_urls=True, max_cache_bytes=0)
        return {"cache_dir": cache, "revision": None, "report": lambda line: None, "limits": limits}

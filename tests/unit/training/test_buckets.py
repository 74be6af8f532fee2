"""Aspect-ratio buckets: their sizes, what goes into which, the order of micro-batches, and what is seen of it."""

import io
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.core.errors import DatasetError, TaskError
from engine.data.dataset.sizes import read_extents
from engine.data.media import image
from engine.data.media.geometry import geometry
from engine.data.media.image import IMAGE
from engine.data.media.sample_names import OF_VIDEOS
from engine.task.plan.extent import Extent
from engine.task.plan.steps import MAX_VISITS
from engine.task.plan.visits import VisitStream
from engine.training.buckets import Bucket, BucketOrder, bucket_sizes, nearest, sort_into_buckets
from engine.training.encoding import step_window
from tests.support.encoding import BATCH, STEPS, Setup, frozen
from tests.support.fakes import png
from tests.unit.data.dataset.test_sizes import dataset_of

RESOLUTIONS = st.integers(2, 40).map(lambda count: 64 * count)


def bucket(width, height, rows):
    return Bucket(Extent(width, height), np.array(rows, dtype=np.int64), len(rows))


class TestSizes:
    @given(resolution=RESOLUTIONS)
    @settings(max_examples=39, deadline=None)
    def test_are_the_largest_of_the_area(self, resolution):
        sizes, area = bucket_sizes(resolution), resolution**2
        assert (resolution, resolution) in sizes
        assert {(height, width) for width, height in sizes} == set(sizes)
        ratios = [Fraction(width, height) for width, height in sizes]
        assert ratios == sorted(set(ratios)) and ratios[-1] <= 4
        for width, height in sizes:
            assert width % 64 == 0 == height % 64 and width * height <= area
            assert width * (height + 64) > area or (width + 64) * height > area, "one side at least cannot grow"

    def test_of_512(self):
        narrow = ((256, 1024), (256, 960), (256, 896), (256, 832), (320, 768), (320, 704), (384, 640), (448, 576))
        assert bucket_sizes(512) == (*narrow, (512, 512), *((h, w) for w, h in reversed(narrow)))

    @pytest.mark.parametrize(
        "resolution, advice", [(64, "128"), (72, "128"), (520, "512 or 576"), (1000, "960 or 1024")]
    )
    def test_need_a_resolution_that_leaves_a_choice(self, resolution, advice):
        with pytest.raises(TaskError, match=f"resolution is {resolution}: .* try {advice}$"):
            bucket_sizes(resolution)

    def test_of_a_resolution_beyond_all_images(self):
        with pytest.raises(TaskError, match="67,108,864 pixels"):
            bucket_sizes(64 * 10**9)

    @given(size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), resolution=RESOLUTIONS)
    @example(size=(7, 8), resolution=128)
    @settings(deadline=None)
    def test_the_nearest_crops_least(self, size, resolution):
        sizes = bucket_sizes(resolution)

        def kept(target):
            one, other = size[0] * target[1], size[1] * target[0]
            return Fraction(min(one, other), max(one, other))

        assert nearest(size, sizes) == max(range(len(sizes)), key=lambda index: kept(sizes[index]))


class TestSorting:
    def sorted(self, dataset, tmp_path, resolution=256):
        return sort_into_buckets(dataset, read_extents(dataset, IMAGE, tmp_path), resolution)

    def test_every_row_is_in_the_bucket_of_its_upright_shape(self, tmp_path):
        """What cannot be shown goes with most of the others; what is found unreadable only later, by its header."""
        found = self.sorted(dataset_of(tmp_path), tmp_path, 512)
        assert {one.extent.size: one.rows.tolist() for one in found.members} == {
            (320, 704): [4],
            (512, 512): [0, 7],
            (704, 320): [1, 2, 3, 5, 6],
        }

    def test_repeats_are_rows(self, tmp_path):
        plain = self.sorted(dataset_of(tmp_path), tmp_path)
        twice = self.sorted(dataset_of(tmp_path / "2", repeats=2), tmp_path)
        for one, other in zip(plain.members, twice.members, strict=True):
            assert (other.extent, other.num_images) == (one.extent, one.num_images)
            assert other.rows.tolist() == sorted([*one.rows, *(one.rows + 8)])

    def test_without_a_readable_image_all_is_square(self, tmp_path):
        found = self.sorted(dataset_of(tmp_path, {"a.png": b"no", "b.png": b"image"}), tmp_path)
        assert [(one.extent.size, one.rows.tolist()) for one in found.members] == [((256, 256), [0, 1])]
        assert found.kept == found.kept_by_squares == 1.0

    def test_what_a_person_sees(self, tmp_path):
        files = {"a.png": png(0, (128, 128)), "b.png": png(1, (512, 128)), "c.png": png(2, (256, 64))}
        found = self.sorted(dataset_of(tmp_path, files), tmp_path, 128)
        assert found.lines() == [
            "buckets        128 x 128: 1, 256 x 64: 2 images",
            "cropped        0.0% of an image on average, 50.0% without buckets",
        ]
        assert found.lines(OF_VIDEOS)[0].endswith(" 2 clips") and "of a clip on average" in found.lines(OF_VIDEOS)[1]
        assert "has fewer clips than" in found.warnings(2, OF_VIDEOS)[0]
        (note,) = found.warnings(2)
        assert "1 of 2 buckets has fewer images than batch_size 2" in note and found.warnings(1) == []


COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def members_of(counts):
    """Buckets of so many rows, whose rows are dealt out in turn."""
    owners = [index for index, count in enumerate(counts) for _ in range(count)][::-1]
    sizes = [(64 * (index + 1), 64) for index in range(len(counts))]
    return [
        bucket(*size, [row for row, owner in enumerate(owners) if owner == index]) for index, size in enumerate(sizes)
    ]


def order_of(counts, batch, seed=0):
    return BucketOrder(seed=seed, members=members_of(counts), batch_size=batch)


def epoch_ends(counts, batch, epochs):
    """The number of micro-batches before each epoch, from the definition."""
    return [sum((count * epoch + batch // 2) // batch for count in counts) for epoch in range(epochs + 1)]


class TestOrder:
    @given(counts=COUNTS, batch=st.integers(1, 6), epochs=st.integers(1, 9))
    @settings(max_examples=80, deadline=None)
    def test_every_row_once_an_epoch_up_to_half_a_batch(self, counts, batch, epochs):
        """After e epochs a bucket of n rows has had n e visits, B / 2 more or less; a micro-batch has one size."""
        members, end = members_of(counts), epoch_ends(counts, batch, epochs)[-1]
        slots = list(order_of(counts, batch).ordered_rows(0, end * batch))
        for start in range(0, len(slots), batch):
            assert len({slot.bucket for slot in slots[start : start + batch]}) == 1
        seen = Counter(slot.sample for slot in slots)
        for one in members:
            visits = [seen[row] for row in one.rows.tolist()]
            assert abs(sum(visits) - len(one.rows) * epochs) <= batch / 2
            assert max(visits) - min(visits) <= 1
        if all(count % batch == 0 for count in counts):
            assert set(seen.values()) == {epochs} and len(seen) == sum(counts)

    @given(counts=COUNTS, batch=st.integers(1, 6), cuts=st.lists(st.integers(0, 25), min_size=1, max_size=5))
    @settings(max_examples=60, deadline=None)
    def test_cut_anywhere_it_is_the_same_order(self, counts, batch, cuts):
        whole = list(order_of(counts, batch).ordered_rows(0, sum(cuts)))
        start, pieces = 0, []
        for count in cuts:
            pieces += order_of(counts, batch).ordered_rows(start, count)  # a new process each time
            start += count
        assert pieces == whole
        jumping = order_of(counts, batch)
        for number in (len(whole) - 1, 0, len(whole) // 2) if whole else ():
            assert list(jumping.ordered_rows(number, 1)) == whole[number : number + 1]

    def test_a_buckets_visits_are_pass_after_pass_in_fresh_permutations(self):
        counts, batch = [6, 3], 3
        slots = list(order_of(counts, batch).ordered_rows(0, 9 * 40))
        for one in members_of(counts):
            own = sorted((slot.epoch, slot.position, slot.sample) for slot in slots if slot.bucket == one.extent)
            passes = [[sample for turn, _, sample in own if turn == wanted] for wanted in range(40)]
            assert all(sorted(found) == one.rows.tolist() for found in passes)
            assert len({tuple(found) for found in passes}) > 3

    def test_the_buckets_of_an_epoch_are_mixed_differently_each_time(self):
        slots = list(order_of([40, 40], 2).ordered_rows(0, 240))
        epochs = [tuple(slot.bucket for slot in slots[start : start + 80 : 2]) for start in (0, 80, 160)]
        assert len(set(epochs)) == 3
        assert all(sum(one != other for one, other in pairwise(found)) > 8 for found in epochs)

    def test_a_buckets_passes_do_not_depend_on_the_others(self):
        alone = BucketOrder(seed=0, members=[bucket(64, 64, range(5))], batch_size=1)
        beside = BucketOrder(seed=0, members=[bucket(64, 128, [5, 6]), bucket(64, 64, range(5))], batch_size=1)
        passes = []
        for order in (alone, beside):
            own = [slot for slot in order.ordered_rows(0, 70) if slot.bucket == (64, 64, 1)][:50]
            passes.append(sorted((slot.epoch, slot.position, slot.sample) for slot in own))
        assert passes[0] == passes[1]

    def test_it_depends_on_the_seed(self):
        assert list(order_of([8, 5], 2).ordered_rows(0, 40)) != list(order_of([8, 5], 2, seed=1).ordered_rows(0, 40))

    @pytest.mark.parametrize("counts, batch", [([1], 1), ([1], 1000), ([3, 1, 9], 7), ([1000, 1], 4)])
    def test_the_last_countable_visit_is_reached(self, counts, batch):
        (slot,) = order_of(counts, batch).ordered_rows(MAX_VISITS - 1, 1)
        assert slot.sample < sum(counts)

    @pytest.mark.parametrize("counts", [[4, 4], [1, 2], [9, 1, 1]])
    def test_memory_holds_two_passes_of_a_bucket_at_most(self, counts):
        order = order_of(counts, 3)
        for _ in order.ordered_rows(0, 300):
            assert max(Counter(known for known, _ in order._passes).values()) <= 2

    @given(counts=COUNTS, batch=st.integers(1, 4), start=st.integers(0, 60))
    @settings(max_examples=40, deadline=None)
    def test_candidates_are_the_rest_of_the_pass_and_then_everything(self, counts, batch, start):
        order = order_of(counts, batch)
        stream = VisitStream(seed=0, num_rows=0, random_flip=False, num_train_timesteps=10, order=order)
        (visit,) = stream.visits(start, 1)
        one = next(one for one in members_of(counts) if one.extent == visit.bucket)
        rows = list(order.candidates(visit))
        assert rows[0] == visit.sample and len(rows) == len(one.rows) + sum(counts)
        assert sorted(rows[: len(one.rows)]) == one.rows.tolist()
        assert sorted(rows[len(one.rows) :]) == list(range(sum(counts)))
        if len(counts) == 1:  # the only bucket's visits follow each other as their passes do
            following = list(order_of(counts, 1).ordered_rows(0, 200))
            by_position = sorted((slot.position, slot.sample) for slot in following if slot.epoch == visit.epoch)
            own = [sample for _, sample in by_position]
            assert rows[: len(own)] == own[visit.position :] + own[: visit.position]


SHAPES = {(8, 8): [0, 3, 6], (16, 4): [1, 4], (4, 12): [2, 5]}


def small():
    """Small buckets, of which the encoder knows no more than their size."""
    return [bucket(*size, rows) for size, rows in SHAPES.items()]


def images_of(shapes=SHAPES):
    found = {row: png(row, (2 * size[0] + row % 2, 2 * size[1])) for size, rows in shapes.items() for row in rows}
    return [found[row] for row in range(len(found))]


def setup_of(images, folder, **wanted):
    return Setup(images, folder, order=BucketOrder(seed=0, members=small(), batch_size=BATCH), **wanted)


def with_broken(rows):
    return [data[:90] if row in rows else data for row, data in enumerate(images_of())]


class TestEncoding:
    @pytest.mark.parametrize("broken", [(), (3,), (1, 4), (1, 4, 0, 2)], ids=str)
    def test_is_the_same_whatever_the_windows_workers_and_cuts(self, tmp_path, monkeypatch, broken):
        images = with_broken(broken)
        whole = setup_of(images, tmp_path / "a").run()
        for window in (1, 6):
            monkeypatch.setattr(step_window, "WINDOW_VISITS", window)
            assert frozen(setup_of(images, tmp_path / f"w{window}").run()) == frozen(whole)
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 8)
        helped = setup_of(images, tmp_path / "c", workers=2, start=5)
        assert frozen(helped.run()) == frozen(whole[5:])

    @pytest.mark.parametrize("broken", [(), (3,), (1, 4)], ids=str)
    def test_shows_every_micro_batch_at_its_size(self, tmp_path, broken):
        """A whole bucket's images may be unreadable: then others are shown at its size."""
        setup = setup_of(with_broken(broken), tmp_path, texts=[(f"{'x' * row}",) for row in range(7)], center_crop=True)
        size_of = {row: size for size, rows in SHAPES.items() for row in rows}
        images = with_broken(broken)
        for examples in setup.run():
            (size,) = {example.visit.bucket.size for example in examples}
            for one in examples:
                row = int(one.conditioning["states"][0])  # the caption's length
                assert row not in broken
                if any(other not in broken for other in SHAPES[size]):
                    assert size_of[row] == size
                view = geometry(
                    image.image_size(images[row]),
                    target=size,
                    center_crop=True,
                    crop_words=(0, 0),
                    flip=one.visit.flip,
                )
                pixels = image.render(images[row], view)
                assert pixels.shape == (size[1], size[0], 3)
                assert torch.equal(one.moments["mean"], setup.family.encode_pixels(pixels)["mean"])

    def test_nothing_readable(self, tmp_path):
        with pytest.raises(DatasetError, match="none of its 7 images"):
            setup_of([b"no"] * 7, tmp_path).run()

    def test_masks_have_the_shape_of_the_bucket(self, tmp_path):
        masks = [png(100 + row, Image.open(io.BytesIO(data)).size) for row, data in enumerate(images_of())]
        setup = setup_of(images_of(), tmp_path, masks=masks, mask_column="mask")
        shapes = set()
        for one in (one for examples in setup.run() for one in examples):
            width, height = one.visit.bucket.size
            assert one.moments["mask"].shape == (1, height // 2, width // 2)
            shapes.add(one.moments["mask"].shape)
        assert len(shapes) == 3

    def test_squares_share_the_cache_with_those_outside_of_buckets(self, tmp_path):
        images = [png(row, (16, 16)) for row in range(7)]
        wanted = {"center_crop": True, "flip": False}
        Setup(images, tmp_path, **wanted).run()
        square = [bucket(8, 8, range(7))]
        order = BucketOrder(seed=0, members=square, batch_size=BATCH)
        again = Setup(images, tmp_path, order=order, **wanted)
        assert len(again.run()) == STEPS and again.family.encoded_images == []

"""What benchmarks/quality.py measures by, on inputs whose answer is known."""

import json

import numpy as np
import pytest
import torch

from benchmarks import emoji, yardsticks


def test_ranks_counts_the_subjects_that_have_a_nearer_image():
    bank = torch.eye(3)
    queries = torch.tensor([[0.9, 0.4, 0.1], [0.9, 0.4, 0.1], [0.9, 0.4, 0.1]])
    assert yardsticks.ranks(queries, torch.tensor([0, 1, 2]), bank, torch.arange(3)) == [0, 1, 2]


def test_a_subject_counts_by_its_nearest_image():
    bank = torch.tensor([[0.0, 1.0], [0.8, 0.6], [1.0, 0.0], [0.6, 0.8]])  # subjects 0, 1, 0, 1
    query = torch.tensor([[1.0, 0.0]])
    assert yardsticks.ranks(query, torch.tensor([0]), bank, torch.tensor([0, 1, 0, 1])) == [0]
    assert yardsticks.ranks(query, torch.tensor([1]), bank, torch.tensor([0, 1, 0, 1])) == [1]


def test_accuracy():
    assert yardsticks.accuracy([0, 0, 4, 5]) == {"top1": 0.5, "top5": 0.75}


def test_pixel_statistics_of_a_line_drawing_and_of_colour():
    drawing = np.zeros((8, 8, 3), np.uint8)
    drawing[:4] = 255
    red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    grey = np.full((8, 8, 3), 128, np.uint8)
    found = yardsticks.pixel_statistics(np.stack([drawing, red, grey]))
    assert found.tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 1]]


def test_pooled_pixels_see_layout_and_no_colour():
    half = np.full((32, 32, 3), 255, np.uint8)
    half[:16] = 0
    red = half.copy()
    red[:16, :, 0] = 200
    found = yardsticks.pooled_pixels(np.stack([half, red, half.transpose(1, 0, 2)]))
    assert found[0] @ found[1] == pytest.approx(1, abs=1e-5)
    assert found[0] @ found[2] == pytest.approx(0, abs=1e-5)


def test_a_silhouette_is_filled_and_blind_to_what_is_inside():
    ring = np.full((16, 16, 3), 255, np.uint8)
    ring[4:12, 4:12] = 0
    ring[6:10, 6:10] = 255
    red = np.full((16, 16, 3), 255, np.uint8)
    red[4:12, 4:12] = (255, 0, 0)
    broken = ring.copy()
    broken[4:6, 8] = 255  # a gap in the line: white leads inside
    found = yardsticks.silhouettes(np.stack([ring, red, broken]))
    assert found[0].reshape(16, 16)[4:12, 4:12].count_nonzero() == found[0].count_nonzero() == 64
    assert found[0] @ found[1] == pytest.approx(1, abs=1e-5)
    assert found[2].count_nonzero() == 64 - 16 - 2
    assert found[0] @ found[2] == pytest.approx((46 / 64) ** 0.5, abs=1e-5)


def test_a_probe_separates_what_it_learned():
    ramp = torch.linspace(-1, 1, 40)[:, None]
    negatives, positives = torch.cat([ramp - 3, ramp], 1), torch.cat([ramp + 3, ramp], 1)
    probe = yardsticks.Probe.fit(negatives, positives)
    assert (probe.share(negatives), probe.share(positives)) == (0, 1)
    assert probe.share(torch.cat([negatives, positives, positives, positives])) == 0.75


def test_captions_come_once_though_there_are_two_styles(tmp_path):
    rows = [{"text": "an owl emoji", "style": style} for style in emoji.STYLES]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert emoji.dataset_captions(tmp_path) == ["an owl emoji"]


@pytest.mark.parametrize("side", [16, 64])
def test_the_sheet_has_a_row_for_each_label(side):
    images = np.full((emoji.COLUMNS, side, side, 3), 7, np.uint8)
    sheet = emoji.draw_sheet([("real", images), ("drawn", images)])
    assert sheet.size == (emoji.MARGIN + emoji.COLUMNS * emoji.CELL, 2 * emoji.CELL)
    assert sheet.getpixel((sheet.width - 1, sheet.height - 1)) == (7, 7, 7)

"""The line drawings that the base is trained on come from the flat emoji's colours alone."""

import numpy as np
import pytest

from assets import prepare_data

RED, PALE_RED, BLUE, BLACK, WHITE = (230, 40, 40), (240, 60, 60), (40, 90, 230), (20, 20, 20), (255, 255, 255)


def drawn(monkeypatch, left, right):
    """A square of two halves in the middle of a white picture, as a line drawing: its luma, (64, 64)."""

    def render(body, size, crisp=False):
        assert crisp and body == "square"
        picture = np.full((size, size, 3), 255, np.uint8)
        quarter = size // 4
        picture[quarter:-quarter, quarter : size // 2] = left
        picture[quarter:-quarter, size // 2 : -quarter] = right
        return picture

    monkeypatch.setattr(prepare_data, "render", render)
    return prepare_data.line_drawing("square")[..., 0]


def test_two_colours_have_an_outline_and_a_line_between(monkeypatch):
    drawing = drawn(monkeypatch, RED, BLUE)
    assert drawing.shape == (64, 64)
    assert drawing[32, [0, 10, 14, 50, 63]].min() > 250, "nothing is drawn outside the silhouette"
    assert drawing[32, [16, 17, 18, 45, 46, 47]].max() < 64, "the outline lies within it"
    assert drawing[32, 31] < 64, "where the colours meet is a line"
    assert drawing[32, [24, 40]].min() > 250, "the regions are white"


def test_colours_that_lie_close_together_are_one_region(monkeypatch):
    assert drawn(monkeypatch, RED, PALE_RED)[32, 24:40].min() > 250


def test_a_dark_region_is_filled(monkeypatch):
    drawing = drawn(monkeypatch, BLACK, BLUE)
    assert drawing[24:40, 20:30].max() < 5
    assert drawing[32, 40] > 250


def test_white_that_is_enclosed_belongs_to_the_silhouette():
    white = np.ones((8, 8), bool)
    white[2:6, 2:6] = False
    white[3, 3] = True
    outside = prepare_data.surroundings(white)
    assert not outside[3, 3]
    assert outside.sum() == 64 - 16


@pytest.mark.parametrize("radius, size", [(0, 1), (1, 5), (1.5, 9), (2, 13)])
def test_a_point_grows_to_a_disc(radius, size):
    point = np.zeros((9, 9), bool)
    point[4, 4] = True
    assert prepare_data.grow(point, radius).sum() == size


def test_the_captions_of_both_styles_begin_alike():
    assert prepare_data.caption("owl") == "an owl emoji"
    assert prepare_data.line_caption("owl") == "an owl emoji, line drawing"

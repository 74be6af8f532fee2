"""Curves of the loss in a report: axes, outliers, held-out rows."""

import dataclasses
import re

import pytest

from engine.results.history import StepReport
from engine.results.report import render
from tests.support.reports import Page, curve, measured, sample


def test_curves_say_in_words_what_they_draw():
    page = Page(render(sample()))
    assert [element["class"] for element in page.named("path")] == ["raw", "line", "line", "raw", "line"]
    assert len(page.classed("start")) == 3  # in each chart, where the second task begins
    assert "Line: mean of the 5 steps around each (fewer at both ends); faint dot: one step." in page.text
    assert "From 9.836e-5 at step 1 to 1.639e-6 at step 60, between 1.639e-6 and 9.836e-5." in page.text
    assert "Dashed: start of the next task, after step 40." in page.text


def test_a_few_outliers_do_not_flatten_the_curve():
    page = Page(render(sample(history=[StepReport(1, 1e6, 1e-4, 1.0), *curve(300)[1:]])))
    assert "1 step above the chart." in page.text
    assert "900,000" not in page.text


def test_steps_that_the_scaler_skipped_are_counted():
    rows = curve(60)
    rows[7] = dataclasses.replace(rows[7], grad_norm=None)
    assert "The fp16 loss scaler skipped 1 step." in Page(render(sample(history=rows))).text
    assert "scaler" not in Page(render(sample())).text


def test_a_long_training_stays_small():
    report = sample(history=curve(15_000), global_step=15_000, max_steps=15_000, pictures=[])
    text = render(report)
    assert len(text) < 100_000
    assert "faint bar: lowest to highest of 38 steps" in Page(text).text
    for element in Page(text).named("path"):
        assert len(re.findall("[MLV]", element["d"])) <= 810


class TestHeldOut:
    @pytest.mark.parametrize("moved", [0.3, 0.05, 0.01, 0.001, 0.0001])
    def test_a_curve_that_moves_a_little_is_no_flat_line(self, moved):
        rows = [measured(step, 2.179 * (1 - moved * step / 60)) for step in (0, 20, 40, 60)]
        page = Page(render(sample(held_out_losses=rows)))
        (dots,) = page.classed("dots")
        heights = [float(y) for _, y in re.findall(r"M([0-9.]+) ([0-9.]+)h0", dots["d"])]
        assert max(heights) - min(heights) > 200, "of 1000"

    def test_its_axis_has_labels_that_differ(self):
        rows = [measured(step, 2.179 * (1 - 0.0001 * step / 60)) for step in (0, 20, 40, 60)]
        text = render(sample(held_out_losses=rows))
        labels = re.findall(
            r'<text x="-8"[^>]*>([^<]*)</text>', text[text.index("Held-out") : text.index("<h2>Training")]
        )
        assert 2 < len(labels) == len(set(labels)) and all(label.startswith("2.1") for label in labels)

    def test_rounding_is_no_move(self):
        rows = [measured(step, 2.0 + 1e-7 * (step % 40)) for step in (0, 20, 40, 60)]
        (dots,) = Page(render(sample(held_out_losses=rows))).classed("dots")
        heights = [float(y) for _, y in re.findall(r"M([0-9.]+) ([0-9.]+)h0", dots["d"])]
        assert max(heights) - min(heights) < 1

    def test_held_out_clips_are_called_clips(self):
        page = Page(render(sample(held_out_losses=[measured(0, 0.5), measured(20, 0.4)], noun="clip")))
        assert "32 clips held out" in page.text

    def test_nothing_measured_is_nothing_shown(self):
        assert "Held-out" not in Page(render(sample())).text

    def test_the_best_step_is_marked_where_it_is(self):
        page = Page(render(sample(held_out_losses=[measured(k, 0.2 + abs(k - 40) / 100) for k in (0, 20, 40, 60)])))
        assert "From 0.6 at step 0 to 0.4 at step 60" in page.text and "Best at step 40: 0.2." in page.text
        assert "By amount of noise From step 0 to the best, step 40, in 4 equal parts" in page.text
        assert "Part 1 of 4, least noise0.9 → 0.5Part 2 of 40.7 → 0.3" in page.text
        assert "Part 4 of 4, most noise0.6 → 0.2" in page.text
        assert "32 images held out" in page.text and "best: step 40" in page.text
        point, label = page.classed("best")
        (dots,) = page.classed("dots")
        places = re.findall(r"M([0-9.]+) ([0-9.]+)h0", dots["d"])
        assert point["d"] == "M{} {}h0".format(*places[2])
        assert float(places[2][1]) == max(float(y) for _, y in places)  # the lowest: y grows downwards
        assert label["x"] == f"{float(places[2][0]) / 10:.2f}%"

    @pytest.mark.parametrize(
        "losses", [(0.6, 0.4, 0.2), (0.30, 0.29, 0.28), (0.6, 0.1, 0.001), (0.2, 0.2, 0.2), (0.0,)]
    )
    def test_the_best_steps_label_is_where_the_curve_is_not(self, losses):
        page = Page(render(sample(held_out_losses=[measured(20 * k, loss) for k, loss in enumerate(losses)])))
        _, label = page.classed("best")
        (dots,) = page.classed("dots")
        lowest = max(float(y) for _, y in re.findall(r"M([0-9.]+) ([0-9.]+)h0", dots["d"]))
        assert abs(float(label["y"].removesuffix("%")) - lowest / 10) < 0.1 and label["dy"] == "1.6em"  # downwards
        assert lowest < 870  # of 1000: what is left is two lines of 11.5 pixels on the smallest screen's 192

    def test_only_what_compares_with_the_latest_is_drawn(self):
        rows = [measured(0, 0.01, "b" * 16), measured(10, 0.3), measured(20, 0.2), measured(30, None)]
        page = Page(render(sample(held_out_losses=rows)))
        assert "best: step 20" in page.text and "1 measurement not finite." in page.text
        assert "1 measurement of other images or timesteps not shown: they do not compare." in page.text

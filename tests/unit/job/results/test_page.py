"""Clips on the page of a task: stills of them, and how many have room."""

import pytest

from engine.evaluation.drawings import Canvas, plan_images
from engine.evaluation.validation_images import Pictures, without_training
from engine.job.results import page, report_parts
from engine.job.results.page import Page
from engine.results.report.earlier import Earlier

CLIPS = plan_images(["a", "b"], 0, canvas=Canvas(resolution=64, num_frames=9, frame_rate=8.0))


@pytest.fixture
def shown(monkeypatch):
    """The page's pictures for these files of each clip."""

    def shown(drawn, without):
        images, baseline = CLIPS, without_training(CLIPS)
        pictures = Pictures(
            images=images,
            drawn={image.file: drawn for image in images},
            baseline=[image.described() for image in baseline],
            without={image.file: without for image in baseline},
        )
        return Page.__new__(Page)._pictures(pictures)

    monkeypatch.setattr(Page, "_earlier", Earlier())
    monkeypatch.setattr(Page, "_between", lambda self, pictures, file, key: [])
    monkeypatch.setattr(Page, "_stills", {}, raising=False)
    monkeypatch.setattr(report_parts, "still_of", lambda file, data: data and b"still of " + data[:7])
    monkeypatch.setattr(report_parts, "smaller", lambda png, side: png)
    return shown


def test_clips_and_their_stills(shown):
    first, second = shown(b"with", b"without")
    assert (first.clip, first.without_clip, first.is_clip) == (b"with", b"without", True)
    assert (first.png, first.without_png) == (b"still of with", b"still of without")
    assert first.key != second.key


def test_clips_beyond_the_room_are_stills(shown, monkeypatch):
    monkeypatch.setattr(page, "_MAX_VIDEO_BYTES", 20)
    first, second = shown(b"with", b"without")
    assert first.clip and second.clip is None and second.without_clip is None
    assert second.is_clip and second.png == b"still of with"


def test_a_clip_that_cannot_be_decoded_is_missing(shown):
    first, _ = shown(b"with", b"")
    assert first.without_png is None

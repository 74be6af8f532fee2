"""The table of media, where PyAV is not installed."""

import sys

import pytest

from engine.core.errors import TaskError
from engine.data.media.registry import MEDIA, is_sample
from engine.task.task import Dataset


@pytest.fixture
def without_pyav(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("engine.data.media.video.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)


def test_files_of_all_media_are_recognised(without_pyav):
    assert [is_sample(name) for name in ("a.png", "b.MP4", "c.txt")] == [True, True, False]


def test_clips_are_refused_and_images_are_not(without_pyav):
    assert MEDIA["image"].make(Dataset()).has_name("a.png")
    with pytest.raises(TaskError, match="PyAV"):
        MEDIA["video"].make(Dataset())

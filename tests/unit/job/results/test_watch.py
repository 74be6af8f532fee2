"""What tracking services get of a training while it runs."""

from types import SimpleNamespace

from engine.evaluation.drawings import Canvas, plan_images
from engine.job.results.watch import Watch
from engine.task.task import Prompt
from tests.support.clips import clip_bytes


def test_services_get_stills_of_clips():
    sent = []
    watch = Watch.__new__(Watch)
    watch._images = plan_images(
        ["a", Prompt(prompt="b", num_frames=1), "c"], 0, canvas=Canvas(num_frames=9, frame_rate=8.0)
    )
    watch.services = SimpleNamespace(are_open=True, pictures=lambda *told: sent.append(told))
    watch._send(7, {"0.mp4": clip_bytes(codec="av1", frames=3), "1.png": b"image", "2.mp4": b"no clip"})
    ((step, pictures, prompts),) = sent
    assert (step, prompts) == (7, {"0.png": "a", "1.png": "b", "2.png": "c"})
    assert pictures["0.png"].startswith(b"\x89PNG") and pictures["1.png"] == b"image" and "2.png" not in pictures

"""A training's report with a few values, and its page as a browser would read it."""

import io
import math
import re
from html.parser import HTMLParser

from PIL import Image

from engine.results.held_out_rows import Row
from engine.results.history import StepReport
from engine.results.report import Report
from engine.results.report.pictures import Picture, TrainingImage
from engine.training.methods.registry import METHODS

VOID = {"meta", "img", "br", "link", "input"}
GPU = {"type": "cuda", "name": "NVIDIA H200", "capability": "9.0", "memory_bytes": 140 << 30, "cuda": "13.0"}
CPU = {"instructions": "AVX2", "machine": "x86_64", "threads": 1, "type": "cpu"}
VERSIONS = {"sd-lora-task": "0.1.0", "torch": "2.13.0"}


def png(size=64, colour=(200, 60, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def training_image(caption="a dog", **changes):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (0, 120, 0)).save(buffer, format="JPEG")
    return TrainingImage(jpeg=buffer.getvalue(), caption=caption, **changes)


def curve(count):
    return [StepReport(k, 0.2 + 0.1 * math.sin(k * k), 1e-4 * (1 - k / (count + 1)), 0.5) for k in range(1, count + 1)]


def task_entry(start, end, **changes):
    entry = {"from_step": start, "to_step": end, "parent": "ab" * 32 if start else None, "changed": {}, "device": CPU}
    return entry | {"versions": VERSIONS, "task_digest": "cd" * 32} | changes


def sample(**changes):
    """A report of a chain of two tasks."""
    values = {
        "words": METHODS["lora"].words,
        "title": "a tiny model on 8 images",
        "task": {"model": {"name": "tiny"}, "train_args": {"learning_rate": 1e-4}},
        "history": curve(60),
        "pictures": [Picture(prompt="a red square", seed=7, png=png(), without_png=png(colour=(0, 90, 200)))],
        "start_step": 40,
        "global_step": 60,
        "max_steps": 100,
        "visits_per_step": 4,
        "finished": False,
        "seconds": {"prepare": 0.5, "encode": 2.0, "train": 8.0, "save": 0.25},
        "peak_memory_bytes": 468 << 20,
        "skipped": [],
        "lineage": [task_entry(0, 40), task_entry(40, 60)],
        "checkpoint_digest": "ef" * 32,
        "device": CPU,
        "versions": VERSIONS,
    }
    return Report(**(values | changes))


def measured(step, loss, curve="a" * 16):
    return Row(step, loss, () if loss is None else (loss + 0.3, loss + 0.1, loss, loss), 32, curve)


class Page(HTMLParser):
    """The page's elements and text; fails where tags are not balanced."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.pieces, self.style = [], [], [], ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            self.style += data
        else:
            self.pieces.append(data)

    @property
    def text(self):
        return " ".join("".join(self.pieces).split())

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def classed(self, name):
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


def numbers(page):
    """All coordinates that are drawn."""
    drawn = [value for _, attributes in page.elements for name, value in attributes.items() if name in "dxyx1x2y1y2"]
    return [float(text) for value in drawn for text in re.findall(r"-?[0-9.]+(?:e[-+]?[0-9]+)?", value)]

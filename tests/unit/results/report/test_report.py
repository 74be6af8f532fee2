"""`report.html`: complete, self-contained, and never more than text where strangers wrote something."""

import dataclasses
import math
import re
import subprocess
import sys

import pytest

from engine.results.history import StepReport
from engine.results.report import render
from engine.results.report.earlier import Earlier
from engine.results.report.facts import Published, Setting
from engine.results.report.pictures import Picture
from engine.training.methods.registry import METHODS
from tests.support.reports import GPU, VERSIONS, Page, curve, measured, numbers, png, sample, task_entry, training_image

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
REPORTS = {
    "usual": {},
    "finished": {"finished": True, "global_step": 100, "max_steps": 100},
    "on a GPU": {"device": GPU, "lineage": [task_entry(0, 40, device=GPU), task_entry(40, 60)]},
    "no history": {"history": [], "start_step": 0, "global_step": 0, "lineage": []},
    "one step": {"history": curve(1), "start_step": 0, "global_step": 1, "max_steps": 1, "lineage": [task_entry(0, 1)]},
    "two steps": {"history": curve(2)},
    "skipped steps": {"history": [dataclasses.replace(row, grad_norm=None) for row in curve(5)]},
    "nothing but zeros": {"history": [StepReport(k, 0.0, 0.0, 0.0) for k in range(1, 9)]},
    "constant": {"history": [StepReport(k, 0.3, 1e-4, 1.0) for k in range(1, 999)]},
    "not to be drawn": {"history": [StepReport(1, math.nan, -1.0, 1e300), StepReport(2, math.inf, 1e-4, math.inf)]},
    "an outlier": {"history": [*curve(500), StepReport(501, 1e14, 1e-4, 1e-300)]},
    "the same step twice": {"history": [*curve(3), *curve(3)]},
    "held out": {"held_out_losses": [measured(step, 0.2 + (step - 40) ** 2 / 1e4) for step in range(0, 61, 20)]},
    "held out once": {"held_out_losses": [measured(0, 0.3)]},
    "held out, always the same": {"held_out_losses": [measured(step, 0.0) for step in range(300)]},
    "held out, not to be drawn": {"held_out_losses": [measured(0, None), measured(5, -1.0), measured(2**60, 1e300)]},
    "held out, otherwise before": {
        "held_out_losses": [measured(0, 0.3, "b" * 16), measured(0, 0.1), measured(10**15, 0.2)]
    },
    "all there is": {
        "training_images": [training_image(), training_image("", other_captions=2)],
        "num_images": 9,
        "published": [Published("a.safetensors", 5 << 20, "weights"), Published("state.json", 900, "state")],
        "usage": "### A program\n\nCopy `a`.\n\n```python\nx = '<b>'\n```",
        "settings": [Setting("seed", 7, False), Setting("validation.prompt", "", True)],
        "earlier": Earlier({}, [3.0], is_known=True),
    },
    "no time": {"seconds": {}},
    "no images": {"pictures": []},
    "large and without a pair": {"pictures": [Picture(prompt="", seed=0, png=png(300), without_png=None)]},
    "no PNG": {"pictures": [Picture(prompt="x", seed=0, png=b"", without_png=b'"><script>')]},
    "malformed lineage": {
        "lineage": [
            [],
            None,
            {"from_step": [1], "to_step": "x", "parent": 5, "changed": {"a": 1, "b": [{}]}},
            {"from_step": -1, "changed": "x", "device": [], "versions": 3},
            {"from_step": 10**30, "device": {"memory_bytes": "many", "threads": None}, "versions": {"torch": {}}},
        ]
    },
    "a long chain": {"lineage": [task_entry(k, k + 1) for k in range(2000)], "global_step": 2000, "start_step": 1999},
}


@pytest.mark.parametrize("changes", REPORTS.values(), ids=REPORTS.keys())
def test_every_report_is_a_whole_page(changes):
    text = render(sample(**changes))
    page = Page(text)
    assert [element["content"] for element in page.named("meta") if "http-equiv" in element] == [POLICY]
    assert all(math.isfinite(number) for number in numbers(page))
    assert not re.search(r"\b(nan|inf|None)\b", page.text + " ".join(a.get("d", "") for a in page.named("path")))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for element in page.named("svg"):
        assert "viewbox" in element or set(element["aria-labelledby"].split()) <= set(identifiers)
    assert len(text) < 300_000


@pytest.mark.parametrize("changes", REPORTS.values(), ids=REPORTS.keys())
def test_nothing_is_loaded_and_nothing_runs(changes):
    page = Page(render(sample(**changes)))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "action")]
    kinds = ("data:image/png;base64,", "data:image/jpeg;base64,")
    assert all(image["src"].startswith(kinds) for image in page.named("img"))
    assert not re.search(r"url\(|@import|//", page.style)


def test_the_same_report_gives_the_same_page():
    script = (
        "import sys, tests.unit.results.report.test_report as t; sys.stdout.buffer.write(t.render(t.sample()).encode())"
    )
    pages = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert pages == {render(sample()).encode()}


def test_it_needs_no_torch():
    script = "import sys, engine.results.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_headline():
    text = Page(render(sample())).text
    assert "Step 60 of 100 this task: steps 40 to 60" in text
    assert "Images seen240" in text
    assert "Wall time11 s" in text
    assert "Speed8/s" in text
    assert "Peak468 MiBof memory" in text
    assert "Skipped0" in text
    finished = Page(render(sample(finished=True, device=GPU, peak_memory_bytes=31 << 30))).text
    assert "Finished" in finished
    assert "Peak31.0 GiBof GPU memory" in finished


def test_the_track_shows_each_task_of_the_chain():
    track = [element["style"] for element in Page(render(sample())).named("i")]
    assert track == ["left:0.00%;width:40.00%", "left:40.00%;width:20.00%"]


def test_images_stand_beside_those_without_the_lora():
    page = Page(render(sample()))
    assert [image["alt"] for image in page.named("img")] == [
        "Validation image 1 without the LoRA",
        "Validation image 1 with the LoRA",
    ]
    assert len(page.classed("small")) == 1
    assert "a red square seed 7" in page.text
    alone = Page(render(sample(pictures=[Picture(prompt="x", seed=1, png=png(300), without_png=None)])))
    assert len(alone.named("img")) == 1
    assert "not drawn" in alone.text
    assert alone.classed("small") == []


def test_images_in_between_are_a_strip():
    alone = Picture(prompt="a cat", seed=5, png=png(), without_png=None)
    assert Page(render(sample(pictures=[alone]))).classed("strip") == []
    between = [(200, png(8, (1, 2, 3))), (1400, png(8, (4, 5, 6)))]
    page = Page(render(sample(pictures=[alone, dataclasses.replace(alone, between=between)])))
    assert len(page.classed("strip")) == 1
    labels = [image["alt"] for image in page.named("img")]
    assert labels[2:] == ["Validation image 2 after step 200", "Validation image 2 after step 1,400"]
    assert "step 200step 1,400" in page.text


def test_the_chain_shows_what_changed():
    changed = {"train_args.learning_rate": [1e-4, 5e-5], "validation.prompt": [None, "a castle"]}
    second = task_entry(40, 1060, changed=changed, device=GPU, versions=VERSIONS | {"torch": "2.14.0"})
    text = Page(render(sample(lineage=[task_entry(0, 40), second]))).text
    assert "10 to 40?a new LoRAnothingx86_64, AVX2, threads: 1" in text
    assert "240 to 1,06011 sabababababab" in text
    assert "train_args.learning_rate 0.0001 → 5e-05" in text
    assert "validation.prompt null → a castle" in text
    assert "torch 2.13.0 → 2.14.0" in text
    assert "NVIDIA H200, 140.0 GiB, CUDA 13.0" in text


def test_each_phase_has_its_share_of_the_time():
    assert "8 s · 74%" in Page(render(sample())).text


def test_skipped_images_are_listed_with_their_reasons():
    skipped = [(f"{k}.png", "truncated") for k in range(250)]
    page = Page(render(sample(skipped=skipped)))
    assert "Skipped250images" in page.text
    assert "0.pngtruncated1.pngtruncated" in page.text
    assert "And 150 more." in page.text
    assert "No image was skipped." in Page(render(sample())).text


def test_warnings_are_listed():
    page = Page(render(sample(warnings=["1 of 2 images shows <nothing>", "a note"])))
    assert "Warnings1 of 2 images shows <nothing>a note" in page.text
    assert "Warnings" not in Page(render(sample())).text


def test_a_whole_model_has_its_own_words():
    page = render(sample(words=METHODS["full"].words))
    assert "LoRA" not in page
    for words in ("Whole-model training report", "without the training and with it", "the base model&#x27;s weights"):
        assert words in page, words

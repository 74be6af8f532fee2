"""`report.html`: complete, self-contained, and never more than text where strangers wrote something."""

import dataclasses
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from engine.results.held_out_rows import Row
from engine.results.history import StepReport
from engine.results.report import Picture, Report, render

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
VOID = {"meta", "img", "br", "link", "input"}
CPU = {"instructions": "AVX2", "machine": "x86_64", "threads": 1, "type": "cpu"}
GPU = {"type": "cuda", "name": "NVIDIA H200", "capability": "9.0", "memory_bytes": 140 << 30, "cuda": "13.0"}
VERSIONS = {"sd-lora-task": "0.1.0", "torch": "2.13.0"}


def png(size=64, colour=(200, 60, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def curve(count):
    return [StepReport(k, 0.2 + 0.1 * math.sin(k * k), 1e-4 * (1 - k / (count + 1)), 0.5) for k in range(1, count + 1)]


def task_entry(start, end, **changes):
    entry = {"from_step": start, "to_step": end, "parent": "ab" * 32 if start else None, "changed": {}, "device": CPU}
    return entry | {"versions": VERSIONS, "task_digest": "cd" * 32} | changes


def sample(**changes):
    """A report of a chain of two tasks."""
    values = {
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
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.named("img"))
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


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("</p></main><img src=x onerror=alert(1)>", "</p></main><img src=x onerror=alert(1)>"),
        ("</style><!-- ]]> <![CDATA[", "</style><!-- ]]> <![CDATA["),
        ('" onload="x" \' &amp; &#60;', '" onload="x" \' &amp; &#60;'),
        ("a\x00b\x1b[31m\x7f\x85", "a⟨U+0000⟩b⟨U+001B⟩[31m⟨U+007F⟩⟨U+0085⟩"),
        ("gpj\u202egnp.exe\u2066", "gpj⟨U+202E⟩gnp.exe⟨U+2066⟩"),
        ("\u200bzero\u2060width\ufeff", "⟨U+200B⟩zero⟨U+2060⟩width⟨U+FEFF⟩"),
        ("half \ud83d a pair \uffff", "half ⟨U+D83D⟩ a pair ⟨U+FFFF⟩"),
        ("👩\u200d🚀 قلعة", "👩\u200d🚀 قلعة"),
        ("two\r\nlines\rand a half", "two lines⟨U+000D⟩and a half"),
        ("x" * 10_000, "x" * 10_000),
    ],
)
def test_what_strangers_wrote_is_shown_as_text(given, shown):
    harmless = sample(skipped=[("x", "x")], versions={"x": "x"})
    picture = dataclasses.replace(sample().pictures[0], prompt=given)
    text = render(sample(pictures=[picture], skipped=[(given, given)], title=given, versions={given: given}))
    page = Page(text)
    assert page.text.count(shown) >= 5
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in Page(render(harmless)).elements]
    text.encode()


def test_a_checkpoint_can_not_speak_html_either():
    evil = '"><script>x</script>'
    entry = {"from_step": 0, "to_step": evil, "parent": evil, "changed": {evil: [evil, {evil: evil}]}}
    entry |= {"device": {"name": evil, evil: evil}, "versions": {evil: evil}}
    page = Page(render(sample(lineage=[entry, entry], task={evil: evil}, checkpoint_digest=evil, device={evil: evil})))
    assert page.named("script") == []
    assert page.text.count("<script>") > 10


def test_urls_lose_what_may_be_secret():
    url = "https://user:pass%40@host.example:8443/data.zip?X-Signature=secret&b=1#token"
    changed = {"dataset.url": [None, url]}
    lineage = [task_entry(0, 40), task_entry(40, 60, changed=changed)]
    text = render(sample(task={"dataset": {"url": url}, "x": [url]}, title=f"trained on {url}", lineage=lineage))
    for secret in ("user", "pass", "secret", "token"):
        assert not re.search(rf"\b{secret}\b", text), secret
    assert Page(text).text.count("https://host.example:8443/data.zip?…#…") == 5


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


def test_the_chain_shows_what_changed():
    changed = {"train_args.learning_rate": [1e-4, 5e-5], "validation.prompt": [None, "a castle"]}
    second = task_entry(40, 1060, changed=changed, device=GPU, versions=VERSIONS | {"torch": "2.14.0"})
    text = Page(render(sample(lineage=[task_entry(0, 40), second]))).text
    assert "10 to 40a new LoRAnothingx86_64, AVX2, threads: 1" in text
    assert "240 to 1,060abababababab" in text
    assert "train_args.learning_rate 0.0001 → 5e-05" in text
    assert "validation.prompt null → a castle" in text
    assert "torch 2.13.0 → 2.14.0" in text
    assert "NVIDIA H200, 140.0 GiB, CUDA 13.0" in text


def test_skipped_images_are_listed_with_their_reasons():
    skipped = [(f"{k}.png", "truncated") for k in range(250)]
    page = Page(render(sample(skipped=skipped)))
    assert "Skipped250images" in page.text
    assert "0.pngtruncated1.pngtruncated" in page.text
    assert "And 150 more." in page.text
    assert "No image was skipped." in Page(render(sample())).text


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

"""The report in a real browser: nothing leaves, nothing complains, nothing overflows, every image is seen."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time

import pytest

from engine.evaluation.clip_file import encode_clip
from engine.results.report import render
from engine.results.report.facts import Published, Setting
from engine.results.report.pictures import Picture
from tests.support import clips
from tests.support.harness import serving
from tests.support.reports import GPU, curve, png, sample, task_entry, training_image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")]


class Browser:
    """One tab of a headless Chromium, over its debugging pipe: JSON messages that end with a NUL byte."""

    def __init__(self, profile):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        arguments = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" 3</dev/fd/{commands} 4>/dev/fd/{answers}', "sh", *arguments],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._count, self._session, self.events = b"", 0, {}, []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == self._count)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path, *, width, scheme="light"):
        """Load a page in a window of that width, and see what happened meanwhile."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        if not self.seen("Page.loadEventFired"):
            self._until(lambda found: found.get("method") == "Page.loadEventFired")

    def value(self, expression):
        """What JavaScript that the test brings along finds in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def seen(self, *methods):
        return [event["params"] for event in self.events if event.get("method") in methods]

    def _until(self, wanted):
        deadline = time.monotonic() + PATIENCE
        while True:
            message, end, rest = self._buffer.partition(b"\0")
            if end:
                self._buffer, found = rest, json.loads(message)
                self.events.append(found)
                if wanted(found):
                    return found
                continue
            assert select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0], (
                "Chromium is silent"
            )
            data = os.read(self._answers, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def hostile():
    """The address of a server, and the paths that anyone asked it for."""
    with serving({}) as server:
        yield server


@pytest.fixture(scope="module")
def page(tmp_path_factory, hostile):
    """A long chain whose every text tries to load something, is too long, or both."""
    address, _ = hostile
    evil = f'"><img src="{address}/img"><style>@import "{address}/css"</style><script src="{address}/js"></script>'
    long = "w" * 10_000
    prompts = [evil, long, "word " * 2000, "\u202eقلعة فوق السحاب\x00"]
    pictures = [Picture(prompt=text, seed=2**32 - 1, png=png(64), without_png=png(64)) for text in prompts]
    changed = {"validation.prompt": [evil, long], long: [1e-4, 5e-5]}
    lineage = [task_entry(0, 7000), task_entry(7000, 15_000, changed=changed, device=GPU | {evil: long})]
    report = sample(
        title=f"{evil} {long}",
        task={evil: long, "list": [long]},
        pictures=pictures,
        history=curve(15_000),
        start_step=7000,
        global_step=15_000,
        max_steps=20_000,
        seconds={"prepare": 1.0, "validation": 5000.0, long[:40]: 3.0},
        skipped=[(long, evil), (evil, long)],
        lineage=lineage,
        versions={evil: long},
        training_images=[training_image(evil), training_image(long)],
        published=[Published(long, 1, "weights")],
        usage=f"### {evil}\n\n`{long}`\n\n```python\n{evil}{long}\n```",
        settings=[Setting(long, evil, True, long), Setting(evil, long, False)],
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 700, 1200, 2400])
def test_it_fits_any_window_and_nothing_leaves(browser, page, hostile, width, scheme):
    browser.open(page, width=width, scheme=scheme)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert (
        browser.value("Promise.all([...document.images].map(i => i.decode())).then(() => document.images.length)") == 10
    )
    assert browser.value("[...document.images].every(i => i.naturalWidth >= 32 && i.clientWidth >= 100)")
    urls = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert page.as_uri() in urls
    own = (page.as_uri(), "data:image/png;base64,", "data:image/jpeg;base64,")
    assert [url for url in urls if not url.startswith(own)] == []
    assert browser.seen("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []
    assert hostile[1] == []


def test_nothing_stands_outside_its_card(browser, page):
    for width in (360, 1200):
        browser.open(page, width=width)
        outside = """[...document.querySelectorAll('.card :is(p, dd, dt, li, td, img, h3, pre, span)')]
            .filter(e => e.getBoundingClientRect().right > e.closest('.card').getBoundingClientRect().right + 1)
            .map(e => e.outerHTML.slice(0, 80))"""
        assert browser.value(outside) == []


def test_the_policy_holds(browser, page):
    """What escaping keeps out would not load or run either."""
    browser.open(page, width=800)
    probe = """new Promise(done => {
        document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));
        document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:1/x'}));
    })"""
    assert browser.value(probe) == "img-src"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_clips_play(browser, tmp_path, scheme):
    """From the file, in a narrow window as well."""
    clip = encode_clip(clips.pictures(24, (96, 64)), 12.0)
    picture = Picture(prompt="a", seed=1, png=png(96), without_png=png(96), is_clip=True, clip=clip, without_clip=clip)
    path = tmp_path / "report.html"
    path.write_text(render(sample(pictures=[picture])), encoding="utf-8")
    for width in (400, 1200):
        browser.open(path, width=width, scheme=scheme)
        played = """Promise.all([...document.querySelectorAll('video')].map(v => v.play().then(() => new Promise(done =>
            v.ontimeupdate = () => v.currentTime > 0.5 && done([v.duration, v.videoWidth, v.videoHeight])
        ))))"""
        assert browser.value(played) == [[2, 96, 64]] * 2
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.seen("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []


def test_curves_are_drawn(browser, page):
    browser.open(page, width=1200)
    boxes = browser.value(
        "[...document.querySelectorAll('path.line')].map(p => p.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert len(boxes) == 3
    assert all(width > 300 for width, _ in boxes)
    assert boxes[1][1] > 100  # the learning rate falls from the top to near zero


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme(browser, page, scheme):
    browser.open(page, width=400, scheme=scheme)
    colours = browser.value(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map(c => c.match(/[0-9]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"
    )
    ground, ink = colours if scheme == "light" else colours[::-1]
    assert ground > 600 > 150 > ink


def test_it_prints(browser, page):
    browser.open(page, width=1200)
    assert base64.b64decode(browser.call("Page.printToPDF")["data"]).startswith(b"%PDF")


def test_a_click_enlarges_an_image_and_another_one_puts_it_back(browser, page):
    browser.open(page, width=1200)
    click = "(i => { i.click(); return getComputedStyle(i).position + i.clientWidth })(document.images[1])"
    assert browser.value(click) == "fixed1200"
    assert browser.value(click).startswith("static")


def test_the_slider_lays_both_images_over_each_other(browser, page):
    """Without a script: the browser lets the upper one be resized."""
    browser.open(page, width=1200)
    boxes = """(() => { document.querySelector('#view-slider').click();
        return [...document.images].slice(0, 2).map(i => i.getBoundingClientRect()).map(b => [b.x, b.y, b.width])
    })()"""
    below, above = browser.value(boxes)
    assert below == pytest.approx(above, abs=1)
    assert browser.value("getComputedStyle(document.querySelector('.before')).resize") == "horizontal"


SHOW = """new Promise(async done => {
  const video = document.querySelector("video"), canvas = document.createElement("canvas");
  const event = name => new Promise(seen => video.addEventListener(name, seen, {once: true}));
  if (video.readyState < 2) await event("loadeddata");
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const found = [canvas.width, canvas.height, video.duration], drawn = canvas.getContext("2d");
  for (const index of [0, 5, 13, 23]) {
    const there = event("seeked");
    video.currentTime = (index + 0.5) / 24;
    await there;
    await new Promise(later => setTimeout(later, 200));
    drawn.drawImage(video, 0, 0);
    let number = 0;
    for (let bit = 0; bit < 8; bit++)
      if (drawn.getImageData((2 * bit + 1) * canvas.width / 16, 8, 1, 1).data[0] > 127) number += 1 << bit;
    found.push(number);
  }
  const end = event("ended");
  await video.play();
  await end;
  done(found);
})"""


def test_a_validation_clip_plays_and_shows_each_frame_at_its_time(browser, tmp_path):
    encoded = base64.b64encode(encode_clip(clips.pictures(24, (96, 64)), 24.0)).decode()
    (tmp_path / "clip.html").write_text(f'<video muted src="data:video/mp4;base64,{encoded}"></video>')
    browser.open(tmp_path / "clip.html", width=400)
    assert browser.value(SHOW) == [96, 64, 1, 0, 5, 13, 23]

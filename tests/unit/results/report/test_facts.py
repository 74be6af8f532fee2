"""The files and the settings on the page."""

from engine.results.report import render
from engine.results.report.facts import Published, Setting
from tests.support.reports import Page, sample

USAGE = (
    "### A <program>\n\nCopy `a.safetensors`, *then* `<lora:x:1>`.\n\n````python\nx = '```'\ny = '<b>'\n````\n\nEnd."
)


def test_files_have_sizes_and_a_use():
    published = [
        Published("a.safetensors", 3 << 30, "weights"),
        Published("steps/000001.safetensors", 5 << 20, "earlier"),
        Published("steps/000002.safetensors", 5 << 20, "earlier"),
        Published("state.json", 1024, "state"),
    ]
    page = Page(render(sample(published=published, usage=USAGE)))
    assert "a.safetensors3.0 GiB2 files weights of earlier steps, in steps/10 MiB1 file to continue" in page.text
    assert "A <program> Copy a.safetensors, then <lora:x:1>. x = '```' y = '<b>' End." in page.text
    assert "Files" not in Page(render(sample())).text


def test_every_setting_is_there_with_what_it_means():
    settings = [
        Setting("model.name", "/home/me/my models/tiny", False),
        Setting("validation.guidance_scale", None, True, 7.5),
        Setting("seed", 7, False),
    ]
    text = Page(render(sample(settings=settings, task={"model": {"name": "/home/me/my models/tiny"}}))).text
    assert "model.name…/tinyvalidation.guidance_scalenull: here 7.5defaultseed7" in text
    assert "/home" not in text and "my models" not in text

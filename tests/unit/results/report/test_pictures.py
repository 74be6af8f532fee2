"""Training images on the page; views of the validation images."""

from engine.results.report import render
from engine.results.report.earlier import read
from engine.results.report.pictures import Picture, without_training_images
from tests.support.reports import Page, png, sample, training_image


def test_training_images_with_captions():
    images = [training_image("a <dog>"), training_image("", other_captions=2)]
    page = Page(render(sample(training_images=images, num_images=9)))
    assert "2 of 9 images, small" in page.text
    assert "a <dog>(no caption) and 2 other captions" in page.text.replace(")and", ") and")
    assert "Training images" not in Page(render(sample())).text


def test_a_page_about_clips_says_clips():
    page = Page(render(sample(pictures=[], training_images=[training_image()], num_images=9, noun="clip")))
    assert "Validation clips" in page.text and "Training clips 1 of 9 clips, a small still of each" in page.text
    assert page.named("img")[0]["alt"] == "Training clip 1"


def test_every_image_can_be_enlarged_without_a_script():
    page = Page(render(sample(training_images=[training_image()])))
    boxes = [element for element in page.named("input") if element["type"] == "checkbox"]
    assert len(boxes) == len(page.named("img")) == 3
    assert boxes[0]["aria-label"] == "Enlarge: Validation image 1 without the LoRA"


def test_the_slider_needs_both_images():
    alone = Picture(prompt="x", seed=1, png=png(), without_png=None)
    assert Page(render(sample(pictures=[alone]))).classed("views") == []
    page = Page(render(sample()))
    assert len(page.classed("views")) == len(page.classed("both")) == 1


def test_a_page_for_others_has_no_training_images():
    evil = training_image('</section><section class="training-images">')
    page = render(sample(training_images=[evil], num_images=1))
    assert without_training_images(page).replace("\n\n", "\n") == render(sample()).replace("\n\n", "\n")
    assert without_training_images(render(sample())) == render(sample())


CLIP = {"prompt": "x", "seed": 1, "png": png(96), "without_png": png(96), "is_clip": True}


def test_clips_play_with_a_still_before():
    between = [(10, png(8))]
    clip = Picture(**CLIP, clip=b"with", without_clip=b"without", between=between, key="0123456789abcdef")
    page = Page(render(sample(pictures=[clip])))
    without, with_it = page.named("video")
    assert with_it["src"] == "data:video/mp4;base64,d2l0aA=="
    assert without["src"] == "data:video/mp4;base64,d2l0aG91dA=="
    assert {"controls", "loop", "muted", "playsinline"} < with_it.keys() and (with_it["width"], with_it["height"]) == (
        "96",
    ) * 2
    assert with_it["aria-label"] == "Validation clip 1 with the LoRA"
    assert [image["alt"] for image in page.named("img")] == ["Validation clip 1 after step 10"]
    assert page.classed("views") == [] and "Validation clips" in page.text and "too large" not in page.text
    assert "Press a clip to play it" in page.text and "a still of each clip after earlier steps" in page.text
    assert read(render(sample(pictures=[clip])), "ef" * 32, 60).pictures == {
        "0123456789abcdef": [*between, (60, png(96))]
    }


def test_a_clip_without_room_is_a_still():
    page = Page(render(sample(pictures=[Picture(**CLIP)])))
    assert page.named("video") == [] and len(page.named("img")) == 2
    assert "Some clips are too large for this page, which shows a still of each" in page.text

"""Training images on the page; views of the validation images."""

from engine.results.report import render
from engine.results.report.pictures import Picture, without_training_images
from tests.support.reports import Page, png, sample, training_image


def test_training_images_with_captions():
    images = [training_image("a <dog>"), training_image("", other_captions=2)]
    page = Page(render(sample(training_images=images, num_images=9)))
    assert "2 of 9 images, small" in page.text
    assert "a <dog>(no caption) and 2 other captions" in page.text.replace(")and", ") and")
    assert "Training images" not in Page(render(sample())).text


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

"""The report's sections with images: the validation images of a whole chain, and images that were trained on."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.core.messages import plural
from engine.results.report.text import as_html
from engine.results.report.words import Words

_SMALL_PIXELS: Final = 256
_LONG_PROMPT: Final = 200
"""Characters of a text that scrolls; it can be reached by keyboard, then."""
STRIP_LENGTH: Final = 12
"""Maximum number of images of earlier steps beside one validation image."""
STRIP_PIXELS: Final = 192
"""Maximum width and height of these images."""
_TRAINING_IMAGES: Final = '<section class="training-images">'
_END: Final = "</section>"
PNG_START: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A validation image, and the baseline's image of the same prompt and seed: PNG files, of clips stills."""

    prompt: str
    seed: int
    png: bytes
    without_png: bytes | None
    is_clip: bool = False
    clip: bytes | None = None
    """The clip, an MP4 file; None for an image, and for a clip that is too large for the page."""
    without_clip: bytes | None = None
    """The baseline's clip, with the same exceptions."""
    between: Sequence[tuple[int, bytes]] = ()
    """The image, or a still of the clip, after earlier steps of the chain: step and PNG, in their order."""
    key: str = ""
    """A digest of how it is drawn, under which the next task's report finds it; 16 hex digits. Empty: not found."""

    @property
    def noun(self) -> str:
        """The word for it: `image`, `clip`."""
        return "clip" if self.is_clip else "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImage:
    """An image of the dataset, as small as the report shows it. JPEG file."""

    jpeg: bytes
    caption: str
    other_captions: int = 0
    """The number of further captions of the image."""


def validation_images(
    pictures: Sequence[Picture],
    words: Words,
    *,
    step: int,
    start_step: int,
    is_whole: bool,
    is_running: bool,
    noun: str = "image",
) -> str:
    """Return the section with the validation images.

    Args:
        pictures: the images; empty if there are none.
        words: the words for what is trained.
        step: the global step that the task reached.
        start_step: the global step at which it began.
        is_whole: False if images of the chain's earlier tasks cannot be shown.
        is_running: True without a result: the images are of the latest step that has some.
        noun: the word for one of them where there are none: `image`, `clip`.
    """
    if not pictures:
        nothing = "None so far." if is_running else "The task asks for none."
        return f'<section><h2>Validation {noun}s</h2><p class="note">{nothing}</p></section>'
    are_clips = any(picture.is_clip for picture in pictures)
    what, shown = ("clips", "a still of each clip") if are_clips else ("images", "the images")
    small = " small" if max(png_size(picture.png)[0] for picture in pictures) <= _SMALL_PIXELS else ""
    pairs = "\n".join(_pair(number, picture, words.trained, step) for number, picture in enumerate(pictures, start=1))
    below = f"; below, {shown} after earlier steps of the chain" if any(p.between for p in pictures) else ""
    hint = "Click an image to enlarge it."
    if are_clips:
        hint = f"Press a clip to play it in a loop.{' A click on a still enlarges it.' if below else ''}"
    latest = f"The latest {what} so far. " if is_running else ""
    missing = (
        " Images of the tasks before this one are not shown: report.html of the task before does not lie beside its "
        "checkpoint."
    )
    unknown = "" if is_whole or not start_step else missing
    trained = as_html(words.trained)
    views = _VIEWS if any(picture.without_png is not None for picture in pictures) and not are_clips else ""
    large = _TOO_LARGE if any(picture.is_clip and picture.clip is None for picture in pictures) else ""
    return f"""<section class="drawn"><h2>Validation {what}</h2>
<p class="note">{latest}The same prompt and seed, without {trained} and with it{below}. \
{hint}{large}{unknown}</p>
{views}<div class="pairs{small}">{pairs}</div></section>"""


_TOO_LARGE: Final = " Some clips are too large for this page, which shows a still of each; they lie in validation/."
_VIEWS: Final = """<p class="views"><input type="radio" name="view" id="view-sides" checked>\
<label for="view-sides">Side by side</label>
<input type="radio" name="view" id="view-slider"><label for="view-slider">Slider</label> \
<span class="note">Drag the corner at the lower end of the line: without on its left, with on its right.</span></p>
"""


def _pair(number: int, picture: Picture, trained: str, step: int) -> str:
    without, both, what = '<div class="missing">not drawn</div>', "", picture.noun
    if picture.without_png is not None:
        label = f"Validation {what} {number} without {trained}"
        without, both = _image_or_clip(picture.without_png, picture.without_clip, label), " both"
    label = f"Validation {what} {number} with {trained}"
    image = _image_or_clip(picture.png, picture.clip, label, _found_by(picture, step))
    return f"""<figure class="card pair"><div class="sides{both}">
<div class="before"><span class="side">Without</span>{without}</div>
<div><span class="side with">With {as_html(trained)}</span>{image}</div>
</div>{_strip(number, picture)}
<figcaption>{_text(picture.prompt, "(no prompt)")}
<p class="seed">seed {picture.seed}</p></figcaption></figure>"""


def _strip(number: int, picture: Picture) -> str:
    what = picture.noun
    frames = "".join(
        f"<li>{_image(png, f'Validation {what} {number} after step {step:,}', _found_by(picture, step))}"
        f"<span>step {step:,}</span></li>"
        for step, png in picture.between
    )
    return f'<ol class="strip">{frames}</ol>' if frames else ""


def _found_by(picture: Picture, step: int) -> str:
    """Return the attributes by which the next task's report finds an image (`earlier.read`)."""
    return f' data-key="{as_html(picture.key)}" data-step="{step}"' if picture.key else ""


def training_images(images: Sequence[TrainingImage], total: int, noun: str) -> str:
    """Return the section with some of the dataset's `total` images; empty if there are none to show.

    `noun` is the word for one of them; of a clip one frame is shown.
    """
    if not images:
        return ""
    frames = "".join(
        _training_image(f"Training {noun} {number}", image) for number, image in enumerate(images, start=1)
    )
    count = plural(total, noun) if len(images) == total else f"{len(images):,} of {plural(total, noun)}"
    shown = "small" if noun == "image" else "a small still of each"
    return f"""{_TRAINING_IMAGES}<h2>Training {noun}s</h2>
<p class="note">{count}, {shown}, cropped to their centre, with their captions.</p>
<ul class="card trained">{frames}</ul></section>"""


def without_training_images(page: str) -> str:
    """Return a report without its section with training images, for others: they may be private."""
    start = page.find(_TRAINING_IMAGES)
    end = page.find(_END, start)
    return page if start < 0 or end < 0 else page[:start] + page[end + len(_END) :]


def _training_image(label: str, image: TrainingImage) -> str:
    more = f'<p class="seed">and {plural(image.other_captions, "other caption")}</p>' if image.other_captions else ""
    shown = _zoom(label, image.jpeg, "jpeg")
    return f"<li>{shown}{_text(image.caption, '(no caption)')}{more}</li>"


def _text(text: str, empty: str) -> str:
    reach = ' tabindex="0"' if len(text) > _LONG_PROMPT else ""
    return f'<p class="prompt" dir="auto"{reach}>{as_html(text) or empty}</p>'


def _image(png: bytes, label: str, attributes: str = "") -> str:
    return _zoom(label, png, "png", attributes)


def _image_or_clip(png: bytes, clip: bytes | None, label: str, attributes: str = "") -> str:
    """Return an image, or a clip with `png` in its place until it plays."""
    if clip is None:
        return _image(png, label, attributes)
    width, height = png_size(png)
    return (
        f'<video controls loop muted playsinline preload="metadata" width="{width}" height="{height}" '
        f'aria-label="{as_html(label)}" poster="{_data("image/png", png)}" src="{_data("video/mp4", clip)}"'
        f"{attributes}></video>"
    )


def _data(kind: str, data: bytes) -> str:
    """Return an address that holds the data itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _zoom(label: str, data: bytes, kind: str, attributes: str = "") -> str:
    """Return an image that fills the window while the box before it is checked; a click on the image checks it."""
    name = as_html(label)
    return (
        f'<label class="zoom"><input type="checkbox" aria-label="Enlarge: {name}">'
        f'<img alt="{name}" src="{_data(f"image/{kind}", data)}"{attributes}></label>'
    )


def png_size(png: bytes) -> tuple[int, int]:
    """Return width and height in pixels from the header of a PNG file; (0, 0) for anything else."""
    if not png.startswith(PNG_START):
        return (0, 0)
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")

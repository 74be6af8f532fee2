"""Images with captions: `dataset`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from engine.task.key import Chain, about_field, default_of, key
from engine.task.keys.patterns import NO_NUL

FrameExtraction = Literal["head", "chunk", "uniform", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    name: str | None = key(
        None,
        "Name",
        "A Hub dataset ID or a local path.",
        chain=Chain.UNRECORDED,  # the job records the fingerprint, which covers this key and the next four
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    url: str | None = key(
        None,
        "Address",
        "A file to download: an archive, a Parquet file, a list of WebDataset tars, …; its content decides what it is, "
        "not its name. With a range in braces (`train-{000..999}.tar`) it names many tars.",
        chain=Chain.UNRECORDED,
        yields_to="name",
        empty_is_absent=True,
        format="http-url",
    )
    config_name: str | None = key(
        None,
        "Configuration",
        "The dataset's configuration.",
        chain=Chain.UNRECORDED,
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    image_column: str = key("image", "Image column", "The column with the images.", chain=Chain.UNRECORDED)
    video_column: str = key(
        "video",
        "Video column",
        "For video models: the column with the clips, and with images beside clips.",
        chain=Chain.UNRECORDED,
    )
    frame_rate: float | None = key(
        None,
        "Frame rate",
        "For video models: the frames per second at which clips are trained on. Each frame of the resampled clip shows "
        "the file's frame whose time is nearest. Null keeps each file's own frames.",
        chain=Chain.AGREED_IF_SET,
        minimum=0.01,
        maximum=240,  # what SVT-AV1 can say of validation clips
    )
    frame_extraction: FrameExtraction = key(
        "head",
        "Frame extraction",
        "For video models: which frames of a longer clip are shown. `head`: the first ones; `chunk`: its successive "
        "pieces, one in each epoch in turn; `uniform`: frames spread evenly from the first to the last, which shows "
        "the clip faster; `random`: successive ones from a random start.",
        training_only=True,
    )
    caption_column: str = key(
        "text",
        "Caption column",
        "The column with the captions: a string each, or a list of strings of which one is drawn per visit.",
        chain=Chain.UNRECORDED,
    )
    default_caption: str | None = key(
        None,
        "Default caption",
        "The caption of images that have none; an empty one trains them without a caption. "
        "Null refuses a dataset with images that have no caption.",
    )
    trigger_word: str | None = key(
        None,
        "Trigger word",
        "Put in front of every caption that does not contain it, followed by a comma.",
        empty_is_absent=True,
    )
    caption_dropout: float = key(
        0.0,
        "Caption dropout",
        "The probability that a visit has an empty caption (Ho & Salimans 2022, arXiv:2207.12598, take 0.1 to 0.2).",
        training_only=True,
        minimum=0,
        maximum=1,
    )
    shuffle_tags: bool = key(
        False,
        "Shuffle tags",
        "Put the comma-separated tags of a caption in another order on each visit.",
        training_only=True,
    )
    keep_tokens: int = key(
        0,
        "Tags to keep",
        "How many of a caption's first tags `shuffle_tags` leaves where they are. "
        "The trigger word stays first in any case.",
        training_only=True,
        needs="shuffle_tags",
        minimum=0,
    )
    repeats: int = key(
        1, "Repeats", "How often an epoch visits each image.", training_only=True, minimum=1, maximum=10_000
    )
    mask_column: str | None = key(
        None,
        "Mask column",
        "The column with masks, images of the same shape: the mask's brightness is the weight of each position in the "
        "loss, white fully, black not at all; a row without a mask counts fully. In a folder without a table, any name "
        "makes `cat-masklabel.png` the mask of `cat.jpg`.",
        training_only=True,
        empty_is_absent=True,
    )
    alpha_mask: bool = key(
        False,
        "Alpha channel as mask",
        "Use the alpha channel as the mask: transparent parts of an image do not count in the loss. "
        "An image with a mask from `mask_column` keeps that one.",
        training_only=True,
    )
    max_caption_tokens: int | None = key(
        None,
        "Longest caption",
        "How many tokens of a caption count. Null is what is usual for the base model. For Stable Diffusion 75, 150 or "
        "225, start and end not included: captions are encoded 75 tokens at a time, which is what its text encoders "
        "take; null means 75.",
        chain=Chain.UNRECORDED,  # the job records it as an invariant if it is not the family's usual number
        minimum=1,
    )
    caption_lines: Literal["captions", "joined"] = key(
        "captions",
        "Lines of caption files",
        "Whether each line of a text file beside an image is a caption of its own, or the whole file is one caption, "
        "its lines `joined` by blanks.",
        chain=Chain.UNRECORDED,  # the fingerprint covers this, too
    )

    @property
    def joins_lines(self) -> bool:
        """True if all lines of a text file beside an image are one caption."""
        return self.caption_lines == "joined"

    @property
    def fallback_caption(self) -> str | None:
        """The caption of an image that has none; None makes an image without a caption an error."""
        if self.default_caption is None and self.trigger_word:
            return ""  # the trigger word is put in front of it
        return self.default_caption

    @property
    def as_measured(self) -> Dataset:
        """The dataset for the held-out loss: keys that concern only the training have their defaults."""
        training_only = [part for part in fields(self) if about_field(part).training_only]
        return replace(self, **{part.name: default_of(part) for part in training_only})

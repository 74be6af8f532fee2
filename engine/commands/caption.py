"""Write captions beside the images of a folder, by a BLIP model: `entrypoint.py caption FOLDER`.

An image that has a caption file is passed over, and no file is ever overwritten: the program can be stopped and started
again, and captions can be corrected in between.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.commands.program import program
from engine.core.console import Meter, say
from engine.core.errors import DatasetError, ModelError, OutputError, TaskError, first_line
from engine.core.files.atomic_files import FILE_MODE
from engine.core.messages import plural, shown
from engine.data.dataset.captions.caption_files import without_caption
from engine.data.dataset.folder.hub_configurations import METADATA_NAMES
from engine.data.dataset.folder.walking import walk
from engine.data.dataset.images import Files, images_among
from engine.data.dataset.reach import Reach
from engine.data.media.geometry import UnreadableImage
from engine.data.media.image import IMAGE, decode

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_MODEL: Final = "Salesforce/blip-image-captioning-base"
MODEL_TYPES: Final = ("blip", "blip-2", "instructblip", "git")
"""Captioners: Li et al. 2022 (arXiv:2201.12086), 2023 (arXiv:2301.12597), Dai et al. 2023 (arXiv:2305.06500), Wang et
al. 2022 (arXiv:2205.14100)."""

Captioner = Callable[["Image"], str]


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Caption a folder, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="entrypoint.py caption",
        description="Write captions beside the images of a folder, by a BLIP model.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="images, at any depth; each gets a .txt beside it")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a Hub ID or a folder [%(default)s]")
    parser.add_argument("--revision", default="main", help="branch, tag or commit of a model on the Hub [%(default)s]")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="where the captioner runs [cuda where there is one]")
    parser.add_argument("--prompt", help="the beginning of every caption, or the question to an instructed model")
    parser.add_argument("--max-tokens", type=int, default=50, help="maximum length of a caption [%(default)s]")
    arguments = parser.parse_args(argv)
    if arguments.max_tokens < 1:
        raise TaskError(f"--max-tokens is {arguments.max_tokens}: expected at least 1")
    missing = find_images(arguments.folder)
    if not missing:
        say("nothing to do: every image has a caption")
        return 0
    captioner = load(
        arguments.model,
        revision=arguments.revision,
        device=arguments.device,
        prompt=arguments.prompt,
        max_tokens=arguments.max_tokens,
    )
    caption_all(arguments.folder, missing, captioner)
    return 0


def find_images(folder: Path) -> list[str]:
    """Return the images below `folder` that have no caption beside them, as sorted relative paths.

    Raises:
        DatasetError: there is no folder or no image, or a metadata file, which takes precedence over caption files.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    files = walk(folder).files
    if not images_among(files, IMAGE):
        raise DatasetError(f"{folder} holds no images")
    if metadata := [file for file in files if Path(file).name in METADATA_NAMES]:
        raise DatasetError(
            f"{shown(metadata[0])} already gives the captions of {folder}, so caption files would be ignored; "
            "edit the captions there"
        )
    return without_caption(folder, files, IMAGE)


def load(name: str, *, revision: str, device: str | None, prompt: str | None, max_tokens: int) -> Captioner:
    """Load a captioner in float32. It decodes greedily: the same image and prompt give the same caption.

    Raises:
        ModelError: the model is not found, malformed, or not a captioner of `MODEL_TYPES`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        kind = AutoConfig.from_pretrained(name, revision=revision).model_type
        if kind not in MODEL_TYPES:
            raise ModelError(f"{name} is a {kind!r}: expected a captioner, one of {', '.join(MODEL_TYPES)}")
        model = AutoModelForImageTextToText.from_pretrained(
            name, revision=revision, dtype=torch.float32, use_safetensors=True
        )
        processor = AutoProcessor.from_pretrained(name, revision=revision)
    # The libraries' errors for a model that is missing, gated, offline or damaged.
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"the captioner {name!r} cannot be loaded ({first_line(error)}); download it once with a connection "
            f"(hf download {name}), or use a folder or another model with --model"
        ) from error
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(where).eval()

    @torch.no_grad()
    def caption(image: Image) -> str:
        inputs = processor(images=image, **({"text": prompt} if prompt else {}), return_tensors="pt").to(where)
        tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1)
        return " ".join(_decoded(processor, tokens).split())

    return caption


def _decoded(processor: Any, tokens: Any) -> str:
    text: str = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    return text


def caption_all(folder: Path, images: Sequence[str], captioner: Captioner) -> None:
    """Write a caption beside each image. An unreadable image is reported and skipped.

    Raises:
        OutputError: a caption cannot be written.
    """
    files = Files(folder, images, Reach())
    written, meter = 0, Meter("captioning", "images", len(images))
    for index, name in enumerate(images):
        try:
            written += write_caption(folder / name, captioner(decode(files.read(index))))
        except UnreadableImage as error:
            say(f"skipping image {shown(name)}: {error}")
        meter.update(index + 1)
    meter.close()
    say(f"wrote {plural(written, 'caption')} beside the images of {folder}: read them before training")


def write_caption(image: Path, caption: str) -> bool:
    """Write a caption beside `image` unless one exists by now. Return whether it was written."""
    try:
        # One call that makes a new file: it never overwrites one, and never follows a link.
        descriptor = os.open(image.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
    except FileExistsError:
        return False
    except OSError as error:
        raise OutputError(f"cannot write beside {image}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(caption.encode() + b"\n")
    return True

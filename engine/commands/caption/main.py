"""Write captions beside the images and clips of a folder: `entrypoint.py caption FOLDER`.

Of a clip its middle frame is described.

An image that has a caption file is passed over, and no file is overwritten without `--overwrite`: the program can be
stopped and started again, and captions can be corrected in between.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from engine.commands.caption import registry, source
from engine.commands.caption.captioner import Captioner, Options
from engine.commands.caption.tags import spelled
from engine.commands.program import program
from engine.core.console import Meter, say
from engine.core.errors import DatasetError, TaskError
from engine.core.files.atomic_files import create_file, write_file, writing_to
from engine.core.messages import plural, shown
from engine.data.dataset.captions.caption_files import without_caption
from engine.data.dataset.folder.hub_configurations import METADATA_NAMES
from engine.data.dataset.folder.walking import walk
from engine.data.dataset.images import Files, images_among
from engine.data.dataset.reach import Reach
from engine.data.media.geometry import UnreadableImage
from engine.data.media.video.clip import middle_frame, video_medium

DEFAULT_MODEL: Final = "Salesforce/blip-image-captioning-base"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
"""Control characters: readers of captions refuse NUL, and terminals obey others."""
DESCRIPTION: Final = """\
Write captions beside the images of a folder, and beside its clips, of which the middle frame is described. The model
may be BLIP, BLIP-2, InstructBLIP or GIT; an image-text model of transformers, such as Qwen2.5-VL or LLaVA, which
answers a prompt; or a tagger with model.onnx and selected_tags.csv, such as SmilingWolf/wd-vit-tagger-v3."""


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Caption a folder, and return the exit code."""
    arguments = _parse(argv)
    images = find_images(arguments.folder, overwrite=arguments.overwrite)
    if not images:
        say("nothing to do: every image and clip has a caption")
        return 0
    tags = arguments.exclude_tags
    options = Options(
        device=arguments.device,
        prompt=arguments.prompt,
        max_tokens=arguments.max_tokens,
        threshold=arguments.threshold,
        exclude_tags=None if tags is None else frozenset(spelled(tag.strip()) for tag in tags.split(",")),
    )
    captioner = registry.load(source.find(arguments.model, arguments.revision), options)

    def caption(image: Path, text: str) -> bool:
        whole = arguments.prefix + text + arguments.suffix
        return write_caption(image, whole, overwrite=arguments.overwrite)

    caption_all(arguments.folder, images[: arguments.limit], captioner, caption)
    if left := len(images) - len(images[: arguments.limit]):
        say(f"{plural(left, 'file is', 'files are')} left, because of --limit")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="entrypoint.py caption", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="images and clips, at any depth; each gets a .txt beside it")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a Hub ID or a folder [%(default)s]")
    parser.add_argument("--revision", default="main", help="branch, tag or commit of a model on the Hub [%(default)s]")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="where the captioner runs [cuda where there is one]")
    parser.add_argument("--prefix", default="", help="text before every caption, with its blank: 'photo of sks, '")
    parser.add_argument("--suffix", default="", help="text after every caption")
    parser.add_argument("--overwrite", action="store_true", help="caption all files, and replace captions in .txt")
    parser.add_argument("--limit", type=int, help="caption at most so many files")
    models = parser.add_argument_group("models that write sentences")
    models.add_argument("--prompt", help="BLIP: the beginning of every caption; others: what the model is asked")
    models.add_argument("--max-tokens", type=int, help="maximum length of a caption [BLIP: 50, others: 200]")
    taggers = parser.add_argument_group("taggers")
    taggers.add_argument("--threshold", type=float, help="write tags whose probability is above it, 0 to 1 [0.35]")
    taggers.add_argument("--exclude-tags", help="tags that are not written, separated by commas")
    arguments = parser.parse_args(argv)
    for flag, value in (("--max-tokens", arguments.max_tokens), ("--limit", arguments.limit)):
        if value is not None and value < 1:
            raise TaskError(f"{flag} is {value}: expected at least 1")
    if arguments.threshold is not None and not 0 <= arguments.threshold < 1:
        raise TaskError(f"--threshold is {arguments.threshold}: expected a number from 0 to below 1")
    for flag, text in (("--prefix", arguments.prefix), ("--suffix", arguments.suffix)):
        if not text.isprintable():
            raise TaskError(f"{flag} is {text!r}: expected text of one line")
    return arguments


def find_images(folder: Path, *, overwrite: bool) -> list[str]:
    """Return the images and clips below `folder` to be captioned, as sorted relative paths.

    Args:
        folder: the images and clips, at any depth.
        overwrite: return all images; else those that have no caption beside them.

    Raises:
        DatasetError: there is no folder or no image, or a metadata file, which takes precedence over caption files.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    files = walk(folder).files
    medium = video_medium(None)
    images = images_among(files, medium)
    if not images:
        raise DatasetError(f"{folder} holds no images and no clips")
    if metadata := [file for file in files if Path(file).name in METADATA_NAMES]:
        raise DatasetError(
            f"{shown(metadata[0])} already gives the captions of {folder}, so caption files would be ignored; "
            "edit the captions there"
        )
    return images if overwrite else without_caption(folder, files, medium)


def caption_all(folder: Path, images: Sequence[str], captioner: Captioner, write: Callable[[Path, str], bool]) -> None:
    """Caption each image. An unreadable image, and one of which the model says nothing, is reported and skipped.

    Args:
        folder: the images.
        images: their paths below it.
        captioner: returns the caption of an image.
        write: takes an image's path and its caption, and returns whether it was written.

    Raises:
        ModelError: the model cannot caption images.
        OutputError: a caption cannot be written.
    """
    files = Files(folder, images, Reach())
    done: set[Path] = set()
    meter = Meter("captioning", "files", len(images))
    for index, name in enumerate(images):
        stem = (folder / name).with_suffix("")
        try:
            # Of images that differ in the suffix alone, the first one is described: they share a caption file.
            if stem not in done:
                text = captioner(middle_frame(files.read(index)))
                if not text:
                    say(f"no caption for {shown(name)}: the model says nothing about it")
                elif write(folder / name, text):
                    done.add(stem)
        except UnreadableImage as error:
            say(f"skipping {shown(name)}: {error}")
        meter.update(index + 1)
    meter.close()
    say(f"wrote {plural(len(done), 'caption')} beside the files of {folder}: read them before training")


def write_caption(image: Path, caption: str, *, overwrite: bool) -> bool:
    """Write a caption beside `image`, as a whole or not at all. Return whether it was written.

    Without `overwrite`, it is not if there is one by now.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path = image.with_suffix(".txt")
    data = " ".join(_CONTROL.sub(" ", caption).split()).encode() + b"\n"
    with writing_to(path.parent):
        if not overwrite:
            return create_file(path, data)
        write_file(path, data)
    return True

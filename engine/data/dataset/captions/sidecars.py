"""Read a folder of images that has no table: captions in files beside the images, repeats in folder names.

The caption of `cat.png` is in `cat.txt` or `cat.caption` (also `cat.png.txt`), in UTF-8; several lines are several
captions. Without such a file it is taken from `cat.json`, or from kohya's metadata. In a folder named `10_sks dog`
(kohya's layout) each image is visited ten times an epoch, and images without a caption of their own have the caption
`sks dog`. `cat-masklabel.png` (OneTrainer's naming) is the mask of `cat.png`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from engine.core.errors import DatasetError
from engine.core.files.folder_names import composed, label_of, stem_of
from engine.core.messages import listing, plural, shown
from engine.data.dataset.captions.caption_files import Caption, find_captions, json_beside, json_rule, repeats
from engine.data.dataset.captions.json_captions import PathCaptions
from engine.data.dataset.columns import Columns
from engine.data.dataset.folder.splits import TRAIN, by_split, choose_named_split, split_of_image
from engine.data.dataset.folder.unused import NO_CAPTION_IN_JSON, OTHER_SPLITS, ZERO_TIMES, Account
from engine.data.dataset.images import Files, images_among
from engine.data.dataset.rows import NO_CAPTION, Rows, Rules, caption_array
from engine.data.dataset.tables.tables import Source
from engine.data.media.medium import Medium
from engine.task.task import Dataset

_PLAIN: Final = Dataset()


def read_sidecars(
    account: Account, listed: Mapping[str, PathCaptions], source: Source, *, declared: Sequence[str] | None = None
) -> tuple[tuple[Rows, ...], list[str]]:
    """Return rows of the images of a folder, in the order of their paths, and notes to print.

    Args:
        account: of the dataset's folder; gets an entry for each file that is used or left out.
        listed: kohya's metadata, by file.
        source: the columns, split and captions that the task asks for.
        declared: the images of the wanted split in their order; None takes the split from the names of folders.

    Raises:
        DatasetError: there are no images, none has a caption and the task gives none, captions are not UTF-8 text, or
            there are no masks and the task asks for them.
    """
    root = account.root
    if declared is None:
        everything = images_among(account.files, account.medium)
        images = _images_of_split(everything, root.name, source.split)
        account.leave(OTHER_SPLITS, sorted(set(everything) - set(images)))
    else:
        images = images_among(declared, account.medium)
    account.leave(ZERO_TIMES, [file for file in images if repeats(file)[0] == 0])
    images = [file for file in images if repeats(file)[0] > 0]
    masks = _masks(account, images, source.columns)
    captions = find_captions(root, images, account.files, listed, source)
    uncaptioned = [image for image, one in zip(images, captions, strict=True) if one.file is None]
    account.leave(NO_CAPTION_IN_JSON, json_beside(uncaptioned, account.files, account.medium))
    if not images or (source.columns.fallback is None and all(one.rule == NO_CAPTION for one in captions)):
        if not images and (told := account.told(ZERO_TIMES)):
            raise DatasetError(f"{root.name} holds nothing to train on: {told}")
        elsewhere = f"; {listing(list(listed))} (kohya's metadata) lists none of them" if listed else ""
        in_json = f"; {told}" if (told := account.told(NO_CAPTION_IN_JSON)) else ""
        raise DatasetError(no_captions(root.name, len(images), account.medium) + elsewhere + in_json)
    account.use(one.file for one in captions if one.file is not None)
    parts = []
    for times, run in itertools.groupby(range(len(images)), key=lambda index: repeats(images[index])[0]):
        own = list(run)
        parts.append(
            Rows(
                images=Files(root, [images[index] for index in own], source.reach),
                captions=caption_array([captions[index].texts for index in own], "caption", root.name),
                label=root.name,
                repeats=times,
                masks=None if masks is None else Files(root, [masks[index] for index in own], source.reach),
                rules=_rules([captions[index].rule for index in own]),
            )
        )
    notes = _unused_columns(root.name, source.columns, captions) + _fallback_notes(images, captions, source)
    return tuple(parts), notes + _paragraph_notes(captions, source)


def _masks(account: Account, images: Sequence[str], columns: Columns) -> list[str] | None:
    """Return each image's mask, an empty string for none; None if the task asks for no masks. Raises DatasetError."""
    if columns.mask is None:
        return None
    labels = ((file, label_of(file)) for file in reversed(account.files) if account.medium.has_name(file))
    found = {composed(label[0]): file for file, label in labels if label and label[1] == "mask"}
    masks = [found.get(stem_of(image), "") for image in images]
    if not any(masks):
        raise DatasetError(
            f"dataset.mask_column asks for masks, but {account.root.name} has none: put cat-masklabel.png beside "
            "cat.jpg, list the masks in a metadata.jsonl, or use dataset.alpha_mask"
        )
    return masks


def _unused_columns(label: str, columns: Columns, captions: Sequence[Caption]) -> list[str]:
    """Return a note for each column name in the task that has no effect: only tables and JSON captions have them."""
    names = columns.medium.names
    named: dict[str, str] = {names.column_key: columns.image}
    if not any(one.rule == json_rule(columns.medium) for one in captions):
        named["caption_column"] = columns.caption
    return [
        f"dataset: {key} {shown(name)!r} has no effect: {label} is read as {names.several}, not as a table"
        for key, name in named.items()
        if name != getattr(_PLAIN, key)
    ]


def _rules(found: Sequence[str]) -> Rules:
    rows: dict[str, list[int]] = {}
    for row, rule in enumerate(found):
        rows.setdefault(rule, []).append(row)
    return tuple(rows.items())


def no_captions(label: str, num_images: int, medium: Medium) -> str:
    """Return the message for samples of which none has a caption: where to put captions."""
    names = medium.names
    listed = f", or {names.list_files[0]} and prompts.txt, line by line" if names.list_files else ""
    return (
        f"{label} holds {plural(num_images, names.noun)} but no captions: put a text file of the same name beside each "
        f'(cat{names.suffix}, cat.txt), or a metadata.jsonl with a line {{"file_name": "1{names.suffix}", "text": '
        f'"a caption"}} for each{listed}, or set dataset.default_caption or dataset.trigger_word'
    )


def _images_of_split(images: list[str], label: str, wanted: str | None) -> list[str]:
    """Return the images of the wanted split; if that is None, those of the training split, else all.

    Raises DatasetError if there is no such split.
    """
    splits = by_split(images, split_of_image, rest_is_train=True)
    if wanted is not None:
        return splits[choose_named_split(splits, label, wanted)]
    return splits.get(TRAIN, images)


def _fallback_notes(images: Sequence[str], captions: Sequence[Caption], source: Source) -> list[str]:
    """Return a note on the images that have no caption, and what they get instead."""
    without = [image for image, one in zip(images, captions, strict=True) if one.rule == NO_CAPTION]
    if not without:
        return []
    fallback = source.columns.fallback
    given = "an empty caption" if fallback is None else f"dataset.default_caption {shown(fallback)!r}"
    if fallback == "":
        given = "an empty caption or the trigger word alone"
    has = "has no caption and gets" if len(without) == 1 else "have no caption and get"
    noun = source.columns.medium.names.noun
    return [f"dataset: {len(without):,} of {plural(len(images), noun)} {has} {given}: {listing(without)}"]


def _paragraph_notes(captions: Sequence[Caption], source: Source) -> list[str]:
    """Return a note on text files with blank lines, which may be meant as one caption each."""
    files = [one.file for one in captions if one.file is not None and one.is_in_paragraphs]
    if source.joins_lines or not files:
        return []
    have = plural(len(files), "text file has blank lines", "text files have blank lines")
    return [
        f"dataset: {have} between paragraphs, and each line is taken as a caption of its own; "
        f'set dataset.caption_lines to "joined" to make each file one caption: {listing(files)}'
    ]

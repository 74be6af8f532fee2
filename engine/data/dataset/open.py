"""Open the dataset that a task names: a local folder or table, a dataset on the Hub, or a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from engine.core.errors import DatasetError
from engine.core.limits import DEFAULT_LIMITS, Limits
from engine.core.messages import Say
from engine.data.dataset.captions.caption_files import is_text_beside
from engine.data.dataset.captions.caption_notes import caption_notes
from engine.data.dataset.columns import Columns, arrow_kinds
from engine.data.dataset.dataset import BeginWindow, ImageDataset, ends_of, no_window
from engine.data.dataset.fingerprints import pinned, remembered_fingerprint
from engine.data.dataset.folder.folders import read_local
from engine.data.dataset.reach import Reach
from engine.data.dataset.rows import Rows, rows_from_arrow
from engine.data.dataset.tables.tables import Source
from engine.data.media.medium import Medium
from engine.data.media.sample_names import SampleNames
from engine.task.paths import nearest
from engine.task.task import Dataset

MAX_EPOCH_VISITS: Final = 100_000_000
"""Limit on the visits of an epoch, whose permutation is in memory; folder names (`N_name`) can ask for any number."""


def open_dataset(
    wanted: Dataset,
    medium: Medium,
    *,
    cache_dir: Path,
    revision: str | None,
    report: Say,
    limits: Limits = DEFAULT_LIMITS,
    split: str | None = None,
) -> ImageDataset:
    """Open a task's dataset: `dataset.name` (a local path, else a Hub ID), or `dataset.url`.

    The rows of a local dataset may name any local image, also by absolute path; those of a downloaded one only files
    inside its own folder. No row may name a URL.

    Args:
        wanted: the task's `dataset`.
        medium: decides which files are samples.
        cache_dir: the folder for downloads and copies.
        revision: the commit at which a Hub dataset is opened. The first task of a chain passes None, which resolves the
            main branch once.
        report: called with a line to print.
        limits: of downloads, and of what they unpack to.
        split: a split's name; None is the training split.

    Raises:
        DatasetError: not found, no such column, no rows, or rows that name what they must not.
        TemporaryError: the network or the Hub fails.
        OutputError: the cache cannot be written.
    """
    column = {"image_column": wanted.image_column, "video_column": wanted.video_column}[medium.names.column_key]
    columns = Columns(column, wanted.caption_column, medium, fallback=wanted.fallback_caption, mask=wanted.mask_column)
    source = Source(
        columns=columns,
        reach=Reach(),
        cache_dir=cache_dir,
        max_bytes=limits.max_dataset_bytes,
        split=split,
        config_name=wanted.config_name,
        joins_lines=wanted.joins_lines,
    )
    commit: str | None = None
    begin_window: BeginWindow = no_window
    if wanted.name:
        parts, commit = _named(wanted.name, source, revision, report)
    else:
        parts, begin_window = _fetched(str(wanted.url), source, report, limits)
    dataset = _dataset(parts, wanted.repeats, cache_dir, revision=commit, names=medium.names)
    dataset = replace(dataset, begin_window=begin_window)
    if split is None:
        for line in caption_notes(dataset.parts, medium.names.noun):
            report(line)
        if wanted.joins_lines and not any(map(is_text_beside, dataset.caption_rules)):
            report('dataset: caption_lines "joined" has no effect: no text files beside images are read')
    return dataset


def _named(name: str, source: Source, revision: str | None, report: Say) -> tuple[tuple[Rows, ...], str | None]:
    """Return the rows of a local path or of a Hub ID, and the Hub commit."""
    path = Path(name)
    if path.exists():
        return read_local(path, source, report), None
    if path.is_absolute() or name.startswith("."):
        raise DatasetError(f"is {name!r}: there is no such folder or file{nearest(path)}", key="dataset.name")
    return _loaded_from_hub(name, source, revision, report)


def _fetched(url: str, source: Source, report: Say, limits: Limits) -> tuple[tuple[Rows, ...], BeginWindow]:
    """Return the rows of a download, and the function that begins a window of images that are read ahead."""
    from engine.data.dataset.tables.shards import read_shards
    from engine.data.fetch import fetch_dataset, listed_shards
    from engine.data.fetch.shards.braces import has_braces
    from engine.data.fetch.shards.lists import expand_url

    if has_braces(url):
        return read_shards(expand_url(url), source, limits=limits, report=report)
    folder = fetch_dataset(url, source.cache_dir, report=report, limits=limits)
    if (shards := listed_shards(folder, url, source.cache_dir)) is not None:
        return read_shards(shards, source, limits=limits, report=report)
    return read_local(folder, replace(source, reach=Reach.within(folder)), report), no_window


def _loaded_from_hub(
    name: str, source: Source, revision: str | None, report: Say
) -> tuple[tuple[Rows, ...], str | None]:
    from engine.data.dataset.hub import load_hub_table

    columns = source.columns
    table, reach, commit, files = load_hub_table(
        name, source.config_name, revision, columns, cache_dir=source.cache_dir, report=report, wanted=source.split
    )
    kinds = arrow_kinds(table.schema)
    image, _ = columns.pick(kinds, name)
    if kinds[image] != "images":
        raise DatasetError(
            f"column {image!r} of {name} (dataset.{columns.medium.names.column_key}) holds {kinds[image]}, not "
            f"{columns.medium.names.several}"
        )
    return (rows_from_arrow(table, columns, folder=Path("/"), reach=reach, label=name, files=files),), commit


def _dataset(
    parts: Sequence[Rows], repeats: int, cache_dir: Path, *, revision: str | None, names: SampleNames
) -> ImageDataset:
    parts = pinned([replace(part, repeats=part.repeats * repeats) for part in parts if len(part.images)])
    if not parts:
        raise DatasetError("the dataset has no rows")
    ends = ends_of(parts)
    if ends[-1] > MAX_EPOCH_VISITS and any(part.repeats > 1 for part in parts):
        raise DatasetError(
            f"with its repeats an epoch of the dataset has {ends[-1]:,} visits, more than {MAX_EPOCH_VISITS:,}: "
            "use fewer repeats (dataset.repeats, folders called N_name)"
        )
    return ImageDataset(parts, ends, remembered_fingerprint(parts, cache_dir), revision, names=names)

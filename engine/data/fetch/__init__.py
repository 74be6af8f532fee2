"""Download and unpack a dataset's URL into a folder of the cache, once.

`datasets/url/<SHA-256 of the URL>.json` names the content, `datasets/content/<SHA-256 of the file>/` holds it. Both are
there whole or not at all. A URL that has been fetched is not asked again: remove its `.json` to fetch it anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from engine.core.errors import DatasetError
from engine.core.files.atomic_files import FILE_MODE, make_folder, sync_folder, write_file, writing_to
from engine.core.files.file_lock import locked, try_lock
from engine.core.files.folder_names import is_part_of_archive
from engine.core.files.retention import hold
from engine.core.limits import DEFAULT_LIMITS, Limits
from engine.core.messages import Say
from engine.core.redact import shown_url
from engine.data.fetch.archive import JOIN_PARTS, SplitArchiveError, extract, notes_of
from engine.data.fetch.download import Download, Policy
from engine.data.fetch.files import fetch_file
from engine.data.fetch.shards.lists import LIST_NAME, is_list, read_list

__all__ = ["Limits", "Policy", "fetch_dataset", "fetch_file", "listed_shards"]

_BUILDING: Final = ".building"
_DEFAULT_POLICY: Final = Policy()


def fetch_dataset(
    url: str,
    cache_dir: Path,
    *,
    report: Say,
    limits: Limits = DEFAULT_LIMITS,
    policy: Policy = _DEFAULT_POLICY,
) -> Path:
    """Download `url` and unpack it, unless that has been done. Returns the content's folder, which is only to be read.

    `report` gets lines for a person. Processes that want the same URL at once wait for the first; no two do the work.
    Through an HTTP proxy, the proxy resolves host names: private addresses are then refused only where the URL spells
    them out or local DNS knows them.

    Raises:
        DatasetError: refused by the server, at a private address, too large, or no safe archive or table.
        TemporaryError: the server or the network fails after all attempts.
        OutputError: the cache cannot be written, or has too little space.
        TaskError: the environment's proxy is not usable.
    """
    root = cache_dir / "datasets"
    key = _key(url)
    pointer = root / "url" / f"{key}.json"
    part = pointer.with_suffix(".part")
    with writing_to(cache_dir):
        found = _published(root, pointer)
        if found is not None and not part.exists():
            _report_notes(pointer, shown_url(url), report)
            return found
        for folder in (root / "url", root / "content"):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(pointer.with_suffix(".lock"), "dataset", report):
            found = _published(root, pointer)
            download = Download(url, part, limits=limits, policy=policy, report=report)
            if found is not None:
                download.discard()  # a process died between making the content known and this
            else:
                download.run()
                found = _publish(root, key, download, label=shown_url(url), limits=limits, report=report)
            _report_notes(pointer, shown_url(url), report)
            return found


def _published(root: Path, pointer: Path) -> Path | None:
    """Return the content's folder if the URL was fetched and the content is still in the cache; else None."""
    try:
        digest = json.loads(pointer.read_bytes())["content"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return None
    folder = root / "content" / digest
    hold(root.parent, folder)
    return folder if folder.is_dir() else None


def listed_shards(folder: Path, url: str, cache_dir: Path) -> list[str] | None:
    """Return the URLs of the shards that a dataset's content lists; None if it is no list.

    Args:
        folder: the content that `fetch_dataset` returned.
        url: the URL that it was fetched from.
        cache_dir: of the job.

    Raises:
        DatasetError: the list is not usable.
    """
    with os.scandir(folder) as entries:
        if [entry.name for entry in islice(entries, 2)] != [LIST_NAME]:  # it may have a million
            return None
    pointer = cache_dir / "datasets" / "url" / f"{_key(url)}.json"
    return read_list(folder / LIST_NAME, json.loads(pointer.read_bytes()).get("redirected_to") or url)


def _key(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def _report_notes(pointer: Path, label: str, report: Say) -> None:
    """Say the notes made when the archive was unpacked: each task of a chain has its own log."""
    for note in json.loads(pointer.read_bytes()).get("notes", []):
        report(f"{label}: {note}")


def _publish(root: Path, key: str, download: Download, *, label: str, limits: Limits, report: Say) -> Path:
    """Unpack the downloaded file and record it in the cache. The URL's lock must be held."""
    _sweep(root, key)
    with download.part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    content, redirected_to = root / "content" / digest, download.redirected_to
    hold(root.parent, content)
    if not content.is_dir():
        building = root / "content" / f".{key}{_BUILDING}"
        report(f"unpacking {label}")
        try:
            make_folder(building)
            _unpack(download.part, building, limits, url=redirected_to or download.url)
            _sync_file_system(building)
            _rename_unless_there(building, content)
        except DatasetError as error:
            # The same bytes would be refused again; the server may have better ones next time.
            download.discard()
            if is_part_of_archive(urlsplit(label).path) and not isinstance(error, SplitArchiveError):
                error = DatasetError(f"{error}; by its name it is a part of a split archive: {JOIN_PARTS}")
            raise DatasetError(f"{label} is not usable: {error}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
    notes = notes_of(download.part, limits) if download.part.exists() else []
    found: dict[str, Any] = {"content": digest, "notes": notes}
    if (content / LIST_NAME).is_file():  # only a list needs it: where a redirect leads is often signed, and a secret
        found["redirected_to"] = redirected_to
    write_file(root / "url" / f"{key}.json", json.dumps(found).encode())
    download.discard()
    return content


def _unpack(part: Path, building: Path, limits: Limits, *, url: str) -> None:
    """Unpack the file downloaded from `url` into a folder; a list of shards is checked and moved there as it is."""
    if not is_list(part):
        extract(part, building, limits)
        return
    read_list(part, url)
    part.chmod(FILE_MODE)
    part.rename(building / LIST_NAME)


def _rename_unless_there(building: Path, content: Path) -> None:
    """Move the content into place, unless another URL with the same bytes was faster."""
    try:
        building.rename(content)
    except OSError:
        if not content.is_dir():
            raise
    sync_folder(content.parent)


def _sweep(root: Path, own_key: str) -> None:
    """Remove the unfinished content of dead processes: a living process holds its URL's lock."""
    for building in (root / "content").glob(f".*{_BUILDING}"):
        key = building.name.removeprefix(".").removesuffix(_BUILDING)
        lock = root / "url" / f"{key}.lock"
        if key == own_key or not lock.is_file():
            shutil.rmtree(building, ignore_errors=True)
            continue
        with lock.open("rb+") as file:
            if try_lock(file.fileno()):
                shutil.rmtree(building, ignore_errors=True)


def _sync_file_system(folder: Path) -> None:
    """Sync everything below `folder` at once; syncing a million files one by one would take an hour."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None or syncfs(descriptor) != 0:
            os.sync()
    finally:
        os.close(descriptor)

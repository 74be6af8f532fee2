"""Download a single file's URL into the cache, once.

`models/url/<SHA-256 of the URL>.json` names the content, `models/content/<its SHA-256><suffix>` is it. As with
datasets, both are there whole or not at all, and a URL that has been fetched is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from engine.core.errors import DatasetError, ModelError
from engine.core.files.atomic_files import sync_folder, write_file, writing_to
from engine.core.files.file_lock import locked
from engine.core.files.retention import hold
from engine.core.limits import Limits
from engine.data.fetch.download import Download, Policy

_DEFAULT_POLICY: Final = Policy()


def fetch_file(
    url: str,
    cache_dir: Path,
    *,
    suffix: str,
    check: Callable[[Path], object],
    report: Callable[[str], None],
    limits: Limits,
    policy: Policy = _DEFAULT_POLICY,
) -> Path:
    """Download `url`, unless that has been done. Returns the file, which is only to be read.

    Args:
        url: http or https.
        cache_dir: of the job.
        suffix: of the file's name in the cache.
        check: called with the downloaded file before it is kept; refuses it by a ModelError.
        report: gets lines for a person.
        limits: of size, and of addresses.
        policy: how patient the download is.

    Raises:
        ModelError: refused by the server or by `check`, at a private address, or too large.
        TemporaryError: the server or the network fails after all attempts.
        OutputError: the cache cannot be written, or has too little space.
        TaskError: the environment's proxy is not usable.
    """
    root = cache_dir / "models"
    pointer = root / "url" / f"{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()}.json"
    with writing_to(cache_dir):
        found = _cached(root, pointer, suffix)
        if found is not None:  # before anything is written: the cache may be read-only
            return found
        for folder in (root / "url", root / "content"):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(pointer.with_suffix(".lock"), "model", report):
            found = _cached(root, pointer, suffix)
            if found is None:
                download = Download(url, pointer.with_suffix(".part"), limits=limits, policy=policy, report=report)
                try:
                    download.run()
                except DatasetError as error:  # raised by downloads for what a server or a limit refuses
                    raise ModelError(f"model.name: {error}") from None
                found = _keep(root, pointer, suffix, download, check)
            return found


def _cached(root: Path, pointer: Path, suffix: str) -> Path | None:
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        digest = json.loads(pointer.read_bytes())["content"]
        if isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest):
            path = root / "content" / f"{digest}{suffix}"
            hold(root.parent, path)
            return path if path.is_file() else None
    return None


def _keep(root: Path, pointer: Path, suffix: str, download: Download, check: Callable[[Path], object]) -> Path:
    """Move a downloaded file to where its content says, then make it known. Needs the URL's lock."""
    try:
        check(download.part)
    except ModelError:
        # The same bytes would be refused again; the server may have better ones next time.
        download.discard()
        raise
    with download.part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    content = root / "content" / f"{digest}{suffix}"
    hold(root.parent, content)
    download.part.replace(content)
    sync_folder(content.parent)
    write_file(pointer, json.dumps({"content": digest}).encode())
    download.discard()
    return content

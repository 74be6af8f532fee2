"""List and download files of a model repository on the Hub at a commit. No torch."""

from __future__ import annotations

from pathlib import Path

from engine.data.fetch import hub
from engine.models.components.files import files_below


def download(name: str, commit: str, files: list[str]) -> Path:
    """Download files of a repository at a commit, and return their folder in the Hub's cache."""
    import huggingface_hub

    folder = hub.with_retries(
        lambda: huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=files), f"base model {name!r}"
    )
    return Path(folder)


def list_files(name: str, commit: str, folder: Path) -> list[str]:
    """Return the names of a repository's files; with HF_HUB_OFFLINE, of those that are in the cache's folder."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return files_below(folder)
    files: list[str] = hub.with_retries(
        lambda: huggingface_hub.HfApi().list_repo_files(name, revision=commit), f"base model {name!r}"
    )
    return files

"""The files of a captioner: in a folder, or in a repository on the Hub at a commit. No torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.core.errors import JobError, ModelError, first_line
from engine.core.messages import short
from engine.data.fetch import hub

CONFIG: Final = "config.json"
TAGS: Final = "selected_tags.csv"
_MAX_CONFIG_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a captioner."""

    name: str
    """The folder or Hub ID, as it was given."""
    folder: Path
    """Holds `config.json` and `selected_tags.csv`, those of them that the model has."""
    commit: str | None
    """The commit on the Hub; None for a folder."""

    def download(self, files: Sequence[str]) -> Path:
        """Return a folder with these files, those of them that there are. Raises ModelError with advice."""
        return self.folder if self.commit is None else _download(self.name, self.commit, files)

    def model_type(self) -> str:
        """Return the type of a model of transformers.

        Raises:
            ModelError: there is no `config.json`, or it does not tell.
        """
        try:
            with (self.folder / CONFIG).open("rb") as file:
                config: Any = json.loads(file.read(_MAX_CONFIG_BYTES))
            found = config["model_type"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise refusal(self.name, f"it has neither a {TAGS} nor a {CONFIG} with a model_type") from error
        if not isinstance(found, str):
            raise refusal(self.name, f"the model_type in its {CONFIG} is {short(found)}")
        return found


def find(name: str, revision: str) -> Source:
    """Find a captioner by its folder or Hub ID.

    Raises:
        ModelError: it is neither, or cannot be looked up offline.
        TemporaryError: the Hub cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return Source(name, hub.snapshot_of(path, revision, ModelError), None)
    try:
        commit = hub.resolve_commit(name, "model", revision, refused=ModelError)
    except ModelError as error:
        raise refusal(name, str(error)) from error
    return Source(name, _download(name, commit, (CONFIG, TAGS)), commit)


def refusal(name: str, reason: str) -> ModelError:
    """Return the error for a captioner that cannot be loaded."""
    advice = "check the folder, or use another model with --model"
    if not Path(name).is_dir():
        advice = (
            f"download it once with a connection (hf download {name}), or use a folder or another model with --model"
        )
    return ModelError(f"the captioner {name!r} cannot be loaded ({reason}); {advice}")


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn whatever a library raises for a model that is missing, gated, malformed or damaged into ModelError."""
    try:
        yield
    except (JobError, MemoryError):
        raise
    except Exception as error:
        raise refusal(name, first_line(error)) from error


@contextlib.contextmanager
def captioning(name: str) -> Iterator[None]:
    """Turn whatever a library raises when a model captions an image into ModelError: it needs something else."""
    try:
        yield
    except (JobError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"the captioner {name!r} fails ({type(error).__name__}: {first_line(error)}); use another --prompt, if it "
            "takes one, or another model with --model"
        ) from error


def _download(name: str, commit: str, files: Sequence[str]) -> Path:
    import huggingface_hub

    def download() -> str:
        folder: str = huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=list(files))
        return folder

    try:
        return Path(hub.with_retries(download, f"captioner {name!r}"))
    except ModelError as error:
        raise refusal(name, str(error)) from error

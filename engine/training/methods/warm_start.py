"""Read weights without training state, made by any trainer, from which a training can start. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import CheckpointError
from engine.results import checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """Weights without training state, from which a training starts."""

    digest: str
    """The SHA-256 of the weights' file followed by `config`."""
    weights: bytes
    name: str
    """The name of the weights' file."""
    config: bytes | None = None
    """The content of the file that describes the weights, if any."""


def read(folder: Path, find: Callable[[Path, Set[str]], tuple[str, str | None]], *, main_file: str) -> WarmStart:
    """Read the weights to start from in a folder.

    Args:
        folder: a folder without a manifest.
        find: `MethodSpec.find_start`.
        main_file: `MethodSpec.main_file`.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    names = checkpoint.names_in(folder)
    checkpoint.require_no_remains(folder, names)
    inner = folder / "checkpoint"
    if (inner / checkpoint.MANIFEST).is_file() or (inner / main_file).is_file():  # an output folder
        raise CheckpointError(
            f"{folder} holds no checkpoint ({checkpoint.MANIFEST}) and no weights to start from ({main_file}); "
            f"the checkpoint is in a folder below: use --checkpoint {inner}"
        )
    name, beside = find(folder, names)
    try:
        data = checkpoint.read_plain_file(folder / name)
        config = None if beside is None else checkpoint.read_plain_file(folder / beside)
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(data)
    digest.update(config or b"")
    return WarmStart(digest=digest.hexdigest(), weights=data, name=name, config=config)

"""Read a base model's tokenizer without importing transformers or torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.core.errors import ModelError, first_line
from engine.models.configs import refuse_large

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(folder: Path, build: Callable[[], Tokenizer]) -> Tokenizer:
    """Return the tokenizer of a folder, without truncation and padding.

    Args:
        folder: the tokenizer's folder.
        build: makes the tokenizer of other files, if there is no `tokenizer.json`.

    Raises:
        ModelError: a file is missing, malformed or too large.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        if not path.is_file():
            return build()
        refuse_large(path)
        tokenizer = Tokenizer.from_file(str(path))
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions for malformed files
        raise ModelError(f"the base model's {folder.name} does not load: {first_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_pairs(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the merges of a byte pair encoding, in `vocab.json` and `merges.txt`.

    Raises:
        ModelError: a file is too large.
        Exception: it is missing or malformed.
    """
    from tokenizers.models import BPE

    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    refuse_large(vocabulary)
    refuse_large(merges)
    found: tuple[dict[str, int], list[tuple[str, str]]] = BPE.read_file(str(vocabulary), str(merges))
    return found

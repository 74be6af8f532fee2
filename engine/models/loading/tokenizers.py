"""Load the tokenizers of a Diffusers folder or single file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from engine.core.errors import ModelError, first_line
from engine.models.configs import refuse_large
from engine.models.family import LoadArgs
from engine.models.single_file import weights as single_file_weights

_CLIP_WORDS: Final = 49408
"""CLIP's vocabulary size, which its configuration may leave out."""


def load_tokenizer(cls: Any, args: LoadArgs, component: str) -> Any:
    """Load a tokenizer.

    Args:
        cls: its class in transformers, which names the files that it is made of.
        args: the base model.
        component: its sub-folder; that of its text encoder has `text_encoder` in place of `tokenizer`.

    Raises:
        ModelError: files missing or malformed, or tokens that its text encoder has no embeddings for.
    """
    place = args.place(component)
    if place.single_file is not None:
        tokenizer = single_file_weights.build_tokenizer(cls, place.single_file, component)
        if args.elsewhere:
            _require_known_tokens(tokenizer, args, component)
        return tokenizer
    _require_tokenizer_files(cls, place.folder)
    try:
        tokenizer = cls.from_pretrained(place.folder, local_files_only=True)
        words = tokenizer("a", add_special_tokens=False).input_ids
    except Exception as error:  # tokenizers raises bare Exceptions for malformed files
        raise ModelError(f"the base model's {component} does not load: {first_line(error)}") from error
    if not words:
        raise ModelError(f"the base model's {component} has no words: download it again")
    _require_known_tokens(tokenizer, args, component)
    return tokenizer


def _require_tokenizer_files(cls: Any, folder: Path) -> None:
    """Raise ModelError unless the folder has one of the sets of files that make a tokenizer of this class."""
    if not folder.is_dir():
        raise ModelError(f"the base model has no {folder.name}/; expected a folder in Diffusers' layout")
    names = {path.name for path in folder.iterdir()}
    whole = cls.vocab_files_names["tokenizer_file"]
    parts = sorted({name for key, name in cls.vocab_files_names.items() if key != "tokenizer_file"}, reverse=True)
    if whole not in names and not names.issuperset(parts):  # transformers would make an empty one
        raise ModelError(f"the base model's {folder.name} has neither {whole} nor {' and '.join(parts)}")
    for name in names & {whole, *parts, "tokenizer_config.json"}:
        refuse_large(folder / name)


def _require_known_tokens(tokenizer: Any, args: LoadArgs, component: str) -> None:
    """Raise ModelError if a tokenizer's ids have no embeddings in its text encoder."""
    config = args.config(component.replace("tokenizer", "text_encoder"))
    inner = config.get("text_config")  # of a model of images and text
    words = (inner if isinstance(inner, dict) else config).get("vocab_size", _CLIP_WORDS)
    token = max(tokenizer.get_vocab().values(), default=0)
    if not isinstance(words, int) or token >= words:
        raise ModelError(
            f"the base model's {component} has {token + 1} tokens, its text encoder {words}: "
            "these parts are of different models"
        )

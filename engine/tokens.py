"""How many tokens a caption has, without transformers and torch: what `--plan` needs to know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_SPECIAL: Final = 2
"""Start and end of text."""
_DEFAULT_LIMIT: Final = 77


class TokenCounter:
    """A base model's CLIP tokenizer (Radford et al. 2021, arXiv:2103.00020, section 2.4), counting only."""

    def __init__(self, folder: Path, chunks: int = 1) -> None:
        """`folder` is the model's tokenizer/, `chunks` how many rows a caption may fill. Raises ModelError."""
        self._tokenizer = _load(folder)
        limit = _read_json(folder / "tokenizer_config.json").get("model_max_length")
        row = limit if isinstance(limit, int) and 2 < limit < 10_000 else _DEFAULT_LIMIT
        self.limit = (row - NUM_SPECIAL) * chunks + NUM_SPECIAL
        """Tokens that a caption may have, one start and one end included; what lies beyond is cut."""

    def count(self, caption: str) -> int:
        """Tokens of a caption, start and end included."""
        return len(self._tokenizer.encode(caption, add_special_tokens=False).ids) + NUM_SPECIAL


def _load(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        return _clip(folder)
    except Exception as error:  # tokenizers raises bare Exceptions for malformed files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the base model's {folder.name} does not load: {reason}") from error


def _clip(folder: Path) -> Tokenizer:
    """Byte pair encoding of lower-cased text, with CLIP's way of splitting it into words."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer = Tokenizer(
        BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token="<|endoftext|>",
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), behavior="removed", invert=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

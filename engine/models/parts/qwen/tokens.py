"""The texts that Qwen's language models encode captions in, and a counter of their tokens for `--plan`. No torch.

These are constants, not the chat template in the base model's files: that is a program, which a stranger may have
written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.models.parts.token_files import read_pairs, read_tokenizer
from engine.models.single_file import SingleFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDER: Final = "tokenizer"
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Special tokens of all of Qwen's tokenizers."""
CHAT: Final = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""A user's message and the beginning of the answer, as the chat template of Qwen3 (arXiv:2505.09388) writes them."""
CHAT_WITHOUT_THINKING: Final = CHAT + "<think>\n\n</think>\n\n"
"""The same with `enable_thinking=False`."""


class TokenCounter:
    """A counter of tokens, with a base model's Qwen tokenizer."""

    def __init__(self, folder: Path, text: str, tokens: int) -> None:
        """
        Args:
            folder: the tokenizer's folder, with `tokenizer.json`, or `vocab.json` and `merges.txt`.
            text: what captions are encoded in, as far as it takes room from them.
            tokens: the number of tokens in which captions are encoded.

        Raises:
            ModelError: the tokenizer is malformed.
        """
        self._tokenizer = read_tokenizer(folder, lambda: _qwen(*read_pairs(folder)))
        self.limit = tokens - self.count(text)
        """The tokens that a caption may have, those of the text around it not counted."""

    def count(self, caption: str) -> int:
        """Return the number of tokens of a caption, those of the text around it not counted."""
        return len(self._tokenizer.encode(caption, add_special_tokens=False).ids)


def counter(text: str) -> Callable[[Path, SingleFile | None, int], TokenCounter | None]:
    """Return `FamilySpec.token_counter` for captions that are encoded in `text`, as far as it takes room from them."""

    def of_folder(folder: Path, file: SingleFile | None, tokens: int) -> TokenCounter | None:
        own = folder / FOLDER
        return TokenCounter(own, text.format(""), tokens) if own.is_dir() else None

    return of_folder


def _qwen(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Return the tokenizer that transformers' `Qwen2Tokenizer` makes of a vocabulary."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), behavior="isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer

"""Count the tokens of captions, for `--plan`, without importing transformers or torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.models.configs import read_json
from engine.models.parts.token_files import read_pairs, read_tokenizer
from engine.models.single_file import SingleFile
from engine.models.single_file.vocabulary import read_vocabulary
from engine.models.spec import CaptionTokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK_TOKENS: Final = 75
"""The tokens that a text encoder takes at a time, start and end not counted."""
CAPTION_TOKENS: Final = CaptionTokens(usual=CHUNK_TOKENS, most=3 * CHUNK_TOKENS, step=CHUNK_TOKENS)
"""The values of `dataset.max_caption_tokens` for a model whose text encoders are all CLIP's."""
_NUM_SPECIAL: Final = 2
"""The start token and the end token."""
_DEFAULT_ROW: Final = 77


class TokenCounter:
    """A counter of tokens, with a base model's CLIP tokenizer (Radford et al. 2021, arXiv:2103.00020, section 2.4)."""

    def __init__(self, tokenizer: Tokenizer, row: object, chunks: int) -> None:
        self._tokenizer = tokenizer
        length = row if isinstance(row, int) and 2 < row < 10_000 else _DEFAULT_ROW
        self.limit = (length - _NUM_SPECIAL) * chunks
        """The tokens that a caption may have, start and end not counted, as in `dataset.max_caption_tokens`."""

    @classmethod
    def of_folder(cls, folder: Path, chunks: int = 1) -> TokenCounter:
        """Return the counter of a model's tokenizer/; a caption may fill `chunks` rows. Raises ModelError."""
        path = folder / "tokenizer_config.json"
        config = read_json(path) if path.is_file() else {}
        tokenizer = read_tokenizer(folder, lambda: _clip(*read_pairs(folder)))
        return cls(tokenizer, config.get("model_max_length"), chunks)

    @classmethod
    def of_single_file(cls, file: SingleFile, chunks: int = 1) -> TokenCounter:
        """Return the counter of CLIP's own tokenizer, which all single files use; a caption may fill `chunks` rows."""
        config = file.configs["tokenizer"]
        tokenizer = _clip(*read_vocabulary())
        tokenizer.add_special_tokens([config["pad_token"]])  # then it is never part of a word, even if it is "!"
        return cls(tokenizer, config["model_max_length"], chunks)

    def count(self, caption: str) -> int:
        """Return the number of tokens of a caption, start and end not counted."""
        return len(self._tokenizer.encode(caption, add_special_tokens=False).ids)


def num_chunks(caption_tokens: int) -> int:
    """Return the number of rows of `CHUNK_TOKENS` tokens that each caption is split into."""
    return caption_tokens // CHUNK_TOKENS


def counter(folder: Path, file: SingleFile | None, caption_tokens: int) -> TokenCounter | None:
    """Return the counter of a folder's or a single file's tokenizer; None if it is not on disk. Raises ModelError."""
    chunks = num_chunks(caption_tokens)
    if file is not None:  # a tokenizer in the folder of a single file belongs to another model
        return TokenCounter.of_single_file(file, chunks)
    own = folder / "tokenizer"
    return TokenCounter.of_folder(own, chunks) if own.is_dir() else None


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Return a byte pair encoding of lower-cased text that splits words as CLIP does."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            merges,
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

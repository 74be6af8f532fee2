"""Count the tokens of captions with T5's tokenizer, for `--plan`, without importing transformers or torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.core.errors import ModelError
from engine.models.configs import refuse_large
from engine.models.parts.token_files import read_tokenizer
from engine.models.single_file import SingleFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SENTENCEPIECE_FILE: Final = "spiece.model"
_SPECIAL: Final = (2, 3)
"""The types UNKNOWN and CONTROL of a SentencePiece model's pieces: `<unk>`, `<pad>` and `</s>`."""
_END: Final = 1
"""The end token is the only token that is added to a caption."""
LEAST: Final = _END + 1
"""The smallest number of tokens in which a caption is more than its end."""


class TokenCounter:
    """A counter of tokens, with a base model's T5 tokenizer (Raffel et al. 2020, arXiv:1910.10683, section 2.4.1)."""

    def __init__(self, folder: Path, tokens: int, clean: Callable[[str], str] = str) -> None:
        """
        Args:
            folder: the tokenizer's folder, with `tokenizer.json` or `spiece.model`.
            tokens: the number of tokens in which captions are encoded.
            clean: what the family does to a caption before it is tokenised.

        Raises:
            ModelError: the tokenizer is malformed.
        """
        self._tokenizer = read_tokenizer(folder, lambda: _from_sentencepiece(read_sentencepiece(folder)))
        self._clean = clean
        self.limit = tokens - _END
        """The tokens that a caption may have, its end not counted."""

    def count(self, caption: str) -> int:
        """Return the number of tokens of a caption, its end not counted."""
        return len(self._tokenizer.encode(self._clean(caption), add_special_tokens=False).ids)


def counter(
    component: str, clean: Callable[[str], str] = str
) -> Callable[[Path, SingleFile | None, int], TokenCounter | None]:
    """Return `FamilySpec.token_counter` for a family with T5's tokenizer in the folder `component`.

    `clean` is what the family does to a caption before it is tokenised.
    """

    def count(folder: Path, file: SingleFile | None, tokens: int) -> TokenCounter | None:
        own = folder / component
        return TokenCounter(own, tokens, clean) if own.is_dir() else None

    return count


def _from_sentencepiece(model: Any) -> Tokenizer:
    """Return the tokenizer that transformers' `T5Tokenizer` makes of a ModelProto, without T5's sentinel tokens."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=model.trainer_spec.unk_id, byte_fallback=False))
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.add_special_tokens([piece.piece for piece in model.pieces if piece.type in _SPECIAL])
    return tokenizer


def read_sentencepiece(folder: Path) -> Any:
    """Return the message ModelProto of a folder's `spiece.model`, with at least one piece.

    Raises:
        ModelError: the file is missing, too large, or malformed.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    path = folder / SENTENCEPIECE_FILE
    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    model = messages.ModelProto()
    try:
        refuse_large(path)
        model.ParseFromString(path.read_bytes())
    except OSError:
        raise ModelError(
            f"the base model's {folder.name} has neither tokenizer.json nor {SENTENCEPIECE_FILE}; download it again"
        ) from None
    except DecodeError:
        raise ModelError(
            f"the base model's {folder.name}/{SENTENCEPIECE_FILE} is malformed; download it again"
        ) from None
    if not model.pieces:
        raise ModelError(f"the base model's {folder.name}/{SENTENCEPIECE_FILE} has no tokens; download it again")
    return model

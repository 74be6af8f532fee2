"""Encode captions to conditioning, or if the text encoders are trained, to token ids that the loop encodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.core.messages import short
from engine.models.family import Family, Tensors
from engine.training.encoding.cache import EncodingCache, cache_key
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.finite import require_finite_caption


class CaptionEncoder:
    """Encodes captions, with a cache on disk. Each is encoded alone, so its bits do not depend on other captions."""

    def __init__(
        self,
        family: Family,
        cache: EncodingCache,
        placement: EncoderPlacement,
        *,
        check_stop: Callable[[], None],
        length: int | None = None,
        is_trained: bool = False,
        is_stored: bool = True,
    ) -> None:
        """
        Args:
            check_stop: called between encodings; raises when the job is to stop.
            length: the length of encodings if it is not the family's usual one (`CaptionTokens.unusual`).
            is_trained: whether the text encoders are trained, so that captions are only tokenized here.
            is_stored: whether encodings are stored in the cache; shuffled tags rarely occur twice in the same order.
        """
        self._family = family
        self._cache = cache
        self._placement = placement
        self._check_stop = check_stop
        self._length = [] if length is None else [length]
        self._is_trained = is_trained
        self._is_stored = is_stored

    def encode(self, captions: Sequence[str]) -> list[tuple[Tensors, Tensors]]:
        """Return the conditioning and the token ids of each caption, on the CPU.

        Token ids are empty if no text encoder is trained; otherwise the conditioning is that of the text encoders that
        are never trained.

        Raises:
            NonFiniteError: a conditioning is not finite.
        """
        known = {caption: self._encoded(caption) for caption in dict.fromkeys(captions)}
        return [known[caption] for caption in captions]

    def _encoded(self, caption: str) -> tuple[Tensors, Tensors]:
        if not self._is_trained:
            return self._conditioning("caption", caption, self._family.encode_caption), {}
        return self._fixed(caption), self._family.tokenize(caption)

    def _fixed(self, caption: str) -> Tensors:
        if not self._family.spec.fixed_text_encoders:
            return {}
        return self._conditioning("fixed caption", caption, self._family.encode_fixed)

    def _conditioning(self, kind: str, caption: str, encode: Callable[[str], Tensors]) -> Tensors:
        key = cache_key(kind, caption, *self._length)
        stored = self._cache.load(key)
        if stored is None:
            self._placement.bring_text_encoders()
            stored = encode(caption)
            require_finite_caption(stored, short(caption))
            self._check_stop()
            if self._is_stored:
                self._cache.store(key, stored)
        return stored

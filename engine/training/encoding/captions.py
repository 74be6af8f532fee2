"""Encode captions to conditioning, or if the text encoders are trained, to token ids that the loop encodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.models.family import Family, Tensors
from engine.training.encoding.cache import EncodingCache, cache_key
from engine.training.encoding.encoder_placement import EncoderPlacement


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
        """Return the conditioning and the token ids of each caption, on the CPU; one of the two is empty."""
        if self._is_trained:
            return [({}, self._family.tokenize(caption)) for caption in captions]
        known = {caption: self._conditioning(caption) for caption in dict.fromkeys(captions)}
        return [(known[caption], {}) for caption in captions]

    def _conditioning(self, caption: str) -> Tensors:
        key = cache_key("caption", caption, *self._length)
        stored = self._cache.load(key)
        if stored is None:
            self._placement.bring()
            stored = self._family.encode_caption(caption)
            self._check_stop()
            if self._is_stored:
                self._cache.store(key, stored)
        return stored

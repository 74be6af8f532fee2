"""Addressed randomness: every random number is a pure function of (seed, stream, address).

There is no state between draws, so a training can be cut anywhere and continues with the same numbers. The generator
is Philox 4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the key names seed and stream,
the 256-bit counter is the address. numpy's implementation gives the same bits on every CPU; `torch.randn` does not.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]
Lanes = npt.NDArray[np.uint16]

_WORD_MASK: Final = (1 << 64) - 1


@functools.cache
def _key(seed: int, stream: str) -> Words:
    digest = hashlib.sha256(f"v1|{seed}|{stream}".encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)


def _generator(seed: int, stream: str, address: int) -> np.random.Generator:
    """Return a generator at the start of the address's own 2**64 blocks of the stream."""
    counter = np.array([0, address & _WORD_MASK, address >> 64, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(seed, stream), counter=counter))


def words(seed: int, stream: str, start: int, count: int) -> Words:
    """Return four raw words for each of the addresses `start … start + count - 1`: uint64, shape (count, 4)."""
    bits = np.random.Philox(key=_key(seed, stream), counter=np.array([start, 0, 0, 0], dtype=np.uint64))
    return bits.random_raw(4 * count).reshape(count, 4)


def normal(seed: int, stream: str, address: int, shape: tuple[int, ...]) -> Floats:
    """Return standard normal numbers of one address: float32, any shape."""
    return _generator(seed, stream, address).standard_normal(shape, dtype=np.float32)


def uniform(seed: int, stream: str, address: int, shape: tuple[int, ...]) -> Floats:
    """Return uniform numbers in [0, 1) of one address, multiples of 2**-24: float32, any shape."""
    return _generator(seed, stream, address).random(shape, dtype=np.float32)


def lanes(seed: int, stream: str, address: int, shape: tuple[int, ...]) -> Lanes:
    """Return uniform 16-bit integers of one address: uint16, any shape. A quarter of the cost of a float."""
    count = math.prod(shape)
    raw = _generator(seed, stream, address).bit_generator.random_raw(-(-count // 4))
    # "<": the lanes of a word in the same order on every machine.
    return raw.astype("<u8", copy=False).view("<u2")[:count].reshape(shape)


def permutation(seed: int, stream: str, address: int, length: int) -> npt.NDArray[np.int64]:
    """Return a permutation of `range(length)`: int64, by sorting raw words, so that no library's shuffle matters."""
    raw = _generator(seed, stream, address).bit_generator.random_raw(length)
    return np.argsort(raw, kind="stable").astype(np.int64)


def below(words: Words, bound: int) -> npt.NDArray[np.int64]:
    """Return integers in [0, bound) from raw words, by multiply-shift of their upper halves; `bound` <= 2**31."""
    return (((words >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def fractions(words: Words) -> npt.NDArray[np.float64]:
    """Return uniform numbers in [0, 1) from the upper 53 bits of raw words: float64, the shape of `words`."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def torch_generator(seed: int) -> torch.Generator:
    """Return a CPU generator for a library that draws its own numbers (validation images)."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


# Known answers: a numpy whose stream changed would silently end every chain's reproducibility.
_KNOWN_WORDS: Final = (7681250273178584664, 16479643192228597733)
_KNOWN_NORMALS: Final = "0faa92e5bc49028617d0dbd7c395f8f21b438633c677f132674a31b77b740be6"


def check_known_answers() -> None:
    """Refuse a numpy whose Philox or ziggurat stream differs from the one that results are defined by.

    Raises:
        RuntimeError: this installation draws other numbers than all others.
    """
    found_words = tuple(int(word) for word in words(1337, "known answer", 7, 1)[0, :2])
    found_normals = hashlib.sha256(normal(1337, "known answer", 7, (4096,)).tobytes()).hexdigest()
    if found_words != _KNOWN_WORDS or found_normals != _KNOWN_NORMALS:
        raise RuntimeError(f"numpy {np.__version__} draws other random numbers than results are defined by")

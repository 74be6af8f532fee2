"""CLIP's vocabulary, which single files leave out: the text encoders of all layouts share it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MERGES: Final = Path(__file__).parent / "clip-merges.txt"


def read_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return token -> id, and the merges.

    The tokens are the 256 bytes, the 256 bytes at the end of a word, one for each merge, and the start and end of text
    (Radford et al. 2021, arXiv:2103.00020, section 2.4).
    """
    merges = MERGES.read_text(encoding="utf-8").split("\n")[:-1]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
    return {token: number for number, token in enumerate(tokens)}, pairs


def _byte_letters() -> list[str]:
    """Return GPT-2's printable characters for the 256 bytes, in the order of the vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]

"""CLIP's vocabulary, which single files leave out: every layout's text encoders share it. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MERGES: Final = Path(__file__).parent / "clip-merges.txt"


def read_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Each token's id, and the merges.

    The tokens are the 256 bytes, the same at a word's end, one for each merge, and the two marks (Radford et al. 2021,
    arXiv:2103.00020, section 2.4).
    """
    merges = MERGES.read_text(encoding="utf-8").split("\n")[:-1]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
    return {token: number for number, token in enumerate(tokens)}, pairs


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the vocabulary's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]

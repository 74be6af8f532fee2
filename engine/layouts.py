"""What the name of a folder of images says, in an archive as on disk."""

from __future__ import annotations

import re
from typing import Final

# Three digits: `2024_summer` is a year, not two thousand visits.
_REPEATED: Final = re.compile(r"(\d{1,3})_(.+)", re.ASCII | re.DOTALL)


def repeated_folder(name: str) -> tuple[int, str] | None:
    """kohya's `10_sks dog` is (10, "sks dog"): visits of each image in an epoch, and what it shows; else None."""
    match = _REPEATED.fullmatch(name)
    return (int(match[1]), match[2].strip()) if match else None

"""The media that can be trained on: one literal table. A family's row names its medium."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.data.media.image import IMAGE
from engine.data.media.medium import Medium

MEDIA: Final[Mapping[str, Medium]] = {"image": IMAGE}

"""The media that can be trained on, by name. `FamilySpec.medium` names one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.data.media.image import IMAGE
from engine.data.media.medium import Medium

MEDIA: Final[Mapping[str, Medium]] = {"image": IMAGE}

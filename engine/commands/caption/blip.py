"""Models that caption without being asked: a prompt is only the beginning of the caption, or a question.

BLIP (Li et al. 2022, arXiv:2201.12086), BLIP-2 (Li et al. 2023, arXiv:2301.12597), InstructBLIP (Dai et al. 2023,
arXiv:2305.06500), GIT (Wang et al. 2022, arXiv:2205.14100).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.commands.caption.captioner import Captioner, Options
from engine.commands.caption.pretrained import load_pretrained
from engine.commands.caption.source import Source

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL_TYPES: Final = ("blip", "blip-2", "instructblip", "git")
_MAX_TOKENS: Final = 50


def reads(source: Source) -> bool:
    """Return whether a model is one of these."""
    return source.model_type() in MODEL_TYPES


def load(source: Source, options: Options) -> Captioner:
    """Load a captioner in float32: the same image and prompt give the same caption."""
    captioner = load_pretrained(source, device=options.device, on_cuda="float32")
    text = {"text": options.prompt} if options.prompt else {}

    def caption(image: Image) -> str:
        return captioner.write(
            lambda: captioner.processor(images=image, **text, return_tensors="pt"),
            max_tokens=options.max_tokens or _MAX_TOKENS,
            keeps_prompt=True,
        )

    return caption

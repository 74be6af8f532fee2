"""Image-text models of transformers that answer a prompt: Qwen2.5-VL, LLaVA, Gemma 3, Florence-2, PaliGemma and others.

Only models whose code is in transformers: code from a repository is never run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from engine.commands.caption.captioner import Captioner, Options
from engine.commands.caption.pretrained import Pretrained, load_pretrained
from engine.commands.caption.source import Source, refusal
from engine.core.errors import ModelError
from engine.core.messages import listing
from engine.data.media.geometry import UnreadableImage

if TYPE_CHECKING:
    from PIL.Image import Image

CHAT_PROMPT: Final = "Describe this image in one or two sentences."
TASK_PROMPTS: Final = {"florence2": "<DETAILED_CAPTION>", "paligemma": "caption en"}
"""The words by which models without a chat template are asked for a caption, from their model cards."""
LONGEST_SIDE: Final = 1024
"""Larger images are reduced to this: some of these models take as many tokens as an image has pixels for."""
MAX_ASPECT_RATIO: Final = 100
_MAX_TOKENS: Final = 200


def reads(source: Source) -> bool:
    """Return whether transformers has the code of a model, and it answers in text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return source.model_type() in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load(source: Source, options: Options) -> Captioner:
    """Load a captioner: in float32 on the CPU, on a GPU in the precision in which it is stored.

    Raises:
        ModelError: it cannot be loaded, lacks weights or a processor, or has no chat template and there is no prompt.
    """
    captioner = load_pretrained(source, device=options.device, on_cuda="auto")
    if captioner.missing:
        names = listing(sorted(captioner.missing))
        raise refusal(source.name, f"it lacks weights that transformers' {source.model_type()} has: {names}")
    prompt = _prompt(source, captioner, options.prompt)

    def caption(image: Image) -> str:
        small = reduced(image)
        return captioner.write(
            lambda: _inputs(captioner.processor, small, prompt),
            max_tokens=options.max_tokens or _MAX_TOKENS,
            keeps_prompt=False,
        )

    return caption


def reduced(image: Image) -> Image:
    """Return an image whose longest side is at most `LONGEST_SIDE`. Raises UnreadableImage if it is a mere line."""
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UnreadableImage(f"one of its sides is more than {MAX_ASPECT_RATIO} times as long as the other")
    image = image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def _prompt(source: Source, captioner: Pretrained, given: str | None) -> str:
    from transformers import ProcessorMixin

    if not isinstance(captioner.processor, ProcessorMixin):
        raise refusal(source.name, "it has no processor for images and text")
    usual = CHAT_PROMPT if captioner.processor.chat_template else TASK_PROMPTS.get(source.model_type())
    prompt = given or usual
    if prompt is None:
        raise ModelError(
            f"{source.name} has no chat template: give --prompt in the format on its model card, with its placeholder "
            "for the image if it has one"
        )
    return prompt


def _inputs(processor: Any, image: Image, prompt: str) -> Any:
    """Return the tensors for one image and prompt, of batch size 1."""
    if not processor.chat_template:
        return processor(images=image, text=prompt, return_tensors="pt")
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )

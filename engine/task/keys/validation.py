"""The validation images and the held-out loss: `validation`."""

from __future__ import annotations

from dataclasses import dataclass

from engine.task.key import Chain, key
from engine.task.keys.patterns import NO_NUL

_MAX_PROMPT = 100_000
_MAX_IMAGES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutDataset:
    name: str | None = key(
        None,
        "Name",
        "A dataset of its own, as in `dataset.name`.",
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    url: str | None = key(
        None,
        "Address",
        "A dataset to download, as in `dataset.url`.",
        empty_is_absent=True,
        format="http-url",
    )
    split: str | None = key(
        None,
        "Split",
        "A split of the training dataset, such as `validation`; if nothing names a split, all of it is `train`.",
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    fraction: float | None = key(
        None,
        "Fraction",
        "The share of the training dataset's images that is held out and not trained on.",
        exclusiveMinimum=0,
        exclusiveMaximum=1,
    )
    config_name: str | None = key(
        None,
        "Configuration",
        "The configuration of the dataset that `name` or `url` gives.",
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    max_images: int = key(
        64,
        "Most images",
        "The largest number of held-out images that are measured. More of them represent the rest better, but each "
        "measurement takes longer.",
        minimum=1,
        maximum=1000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    prompt: str | None = key(
        None,
        "Prompt",
        "The prompt of all validation images; null draws a caption from the dataset for each (of an image with several "
        "captions, not an empty one).",
        chain=Chain.RECORDED,
        maxLength=_MAX_PROMPT,
    )
    prompts: tuple[str, ...] | None = key(
        None,
        "Prompts",
        "Several prompts in place of `prompt`, which must be null then: the first image has the first prompt, and so "
        "on, starting again after the last.",
        minItems=1,
        maxItems=_MAX_IMAGES,
        items={"maxLength": _MAX_PROMPT},
    )
    num_images: int = key(
        4,
        "Number of images",
        "How many validation images are drawn; at least one for each of `prompts`.",
        chain=Chain.RECORDED,
        minimum=1,
        maximum=_MAX_IMAGES,
    )
    negative_prompt: str | None = key(
        None,
        "Negative prompt",
        "The prompt that guidance leads the validation images away from; null is no negative prompt. Refused for base "
        "models that draw without one.",
        maxLength=_MAX_PROMPT,
    )
    guidance_scale: float | None = key(
        None,
        "Guidance scale",
        "How strongly the validation images follow the prompt. Null is what is usual for the base model, 7.5 for "
        "Stable Diffusion, where there is no guidance up to 1.",
        minimum=0,
        maximum=100,
    )
    num_inference_steps: int | None = key(
        None,
        "Inference steps",
        "Denoising steps of a validation image; fewer than the model's timesteps. Null is what is usual for the base "
        "model, 30 for Stable Diffusion.",
        minimum=1,
        maximum=500,
    )
    seed: int | None = key(
        None,
        "Seed of the images",
        "The seed of the first validation image, `0.png`; each following image has the next number. "
        "Null derives the seeds from the task's `seed`.",
        minimum=0,
        maximum=4294967295,
    )
    every_n_steps: int | None = key(
        None,
        "Steps between validations",
        "Validate during the training, too: after each multiple of this number of optimizer steps, "
        "counted through the whole training. Null takes `every_n_epochs`.",
        minimum=1,
    )
    every_n_epochs: int | None = key(
        None,
        "Epochs between validations",
        "Validate during the training, too: after each multiple of this number of epochs of the whole training. "
        "Null, with `every_n_steps` null, validates at the end only.",
        yields_to="every_n_steps",
        minimum=1,
    )
    dataset: HeldOutDataset | None = key(
        None,
        "Held-out dataset",
        "Images that are not trained on, whose [held-out loss](#the-held-out-loss) is measured before, during and "
        "after the training, from exactly one of `name`, `url`, `split` and `fraction`. Null measures none.",
    )

    @property
    def given_prompts(self) -> list[str] | None:
        """The prompt of each image; None if they are drawn from the dataset."""
        given = self.prompts or (() if self.prompt is None else (self.prompt,))
        count = max(self.num_images, len(given))
        return [given[i % len(given)] for i in range(count)] if given else None

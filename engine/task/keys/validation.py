"""The validation images and the held-out loss: `validation`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.task.key import Chain, about, key
from engine.task.keys.patterns import NO_NUL

_MAX_PROMPT = 100_000
MAX_IMAGES = 10
"""The largest number of validation images, and of prompts for them."""
_MAX_SIDE = 8192
_MAX_FRAMES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    prompt: str = field(metadata=about("Prompt", "The prompt.", maxLength=_MAX_PROMPT))
    negative_prompt: str | None = key(
        None,
        "Negative prompt",
        "As `validation.negative_prompt`, for this prompt.",
        maxLength=_MAX_PROMPT,
    )
    height: int | None = key(
        None,
        "Height",
        "The height in pixels. Null is `train_args.resolution`. The base model may need a larger multiple.",
        minimum=64,
        maximum=_MAX_SIDE,
        multipleOf=8,
    )
    width: int | None = key(
        None,
        "Width",
        "The width in pixels. Null is `train_args.resolution`. The base model may need a larger multiple.",
        minimum=64,
        maximum=_MAX_SIDE,
        multipleOf=8,
    )
    num_frames: int | None = key(
        None,
        "Number of frames",
        "The frames of the clip, for base models that draw video; 1 is a still image. Null is `train_args.num_frames`.",
        minimum=1,
        maximum=_MAX_FRAMES,
    )
    guidance_scale: float | None = key(
        None, "Guidance scale", "As `validation.guidance_scale`, for this prompt.", minimum=0, maximum=100
    )
    num_inference_steps: int | None = key(
        None, "Inference steps", "As `validation.num_inference_steps`, for this prompt.", minimum=1, maximum=500
    )
    seed: int | None = key(
        None,
        "Seed",
        "The seed. Where a prompt is drawn several times, each further time has the next number. Null is the seed that "
        "the image has without this key.",
        minimum=0,
        maximum=4294967295,
    )


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
    prompts: tuple[str | Prompt, ...] | None = key(
        None,
        "Prompts",
        "Several prompts in place of `prompt`, which must be null then: the first image has the first prompt, and so "
        "on, starting again after the last. Each is a string, or an object with settings of its own; what it leaves "
        "out is that of the other images.",
        minItems=1,
        maxItems=MAX_IMAGES,
        items={"maxLength": _MAX_PROMPT},
    )
    prompts_file: str | None = key(
        None,
        "File of prompts",
        "A local file in place of `prompt` and `prompts`, which must be null then: CSV (`.csv`, `.tsv`), JSON "
        "(`.json`, `.jsonl`) or Parquet (`.parquet`) with a row for each prompt, at most 10, whose columns are the "
        "keys of an object in `prompts`. A relative path starts from the task's folder. The task is the same one as "
        "with the rows written in `prompts`.",
        chain=Chain.NO_EFFECT,  # its rows are `prompts` as soon as it is read
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    num_images: int = key(
        4,
        "Number of images",
        "How many validation images are drawn; at least one for each of `prompts`.",
        chain=Chain.RECORDED,
        minimum=1,
        maximum=MAX_IMAGES,
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
    def given_prompts(self) -> list[Prompt] | None:
        """The prompt of each image with its settings; None if they are drawn from the dataset."""
        given = self.prompts or (() if self.prompt is None else (self.prompt,))
        rows = [Prompt(prompt=one) if isinstance(one, str) else one for one in given]
        count = max(self.num_images, len(rows))
        return [_again(rows[i % len(rows)], i // len(rows)) for i in range(count)] if rows else None


def _again(row: Prompt, times: int) -> Prompt:
    """Return a prompt's row as it is drawn after having been drawn so many times: with another seed."""
    return row if row.seed is None else replace(row, seed=row.seed + times)

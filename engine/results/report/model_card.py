"""Write `checkpoint/README.md`, the model card of a result as the Hub reads it.

The front matter has the keys of huggingface_hub's `ModelCardData`. Prompts, names and the task are untrusted:
`markdown.py` writes them. The card holds no clock time, host or path, so it is part of a result's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.core.messages import plural
from engine.results.report import markdown

PICTURES: Final = "validation"
"""The folder of the images in a repository on the Hub."""
_VERIFYING: Final = """\
`manifest.json` lists the SHA-256 of every file of the checkpoint, this card included, and a `digest` that stands for
all of them. sd-lora-task, the program that trained it, checks a result: `entrypoint.py verify OUT --task task.json`
trains the task again and compares all bytes with those in the output folder `OUT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The content of a card."""

    noun: str
    """The trained thing with its article: "a LoRA"."""
    hub_id: str | None
    """The base model's Hub ID; None for a folder or a file."""
    identity: str
    """The base model's identity (`BaseModel.identity`)."""
    relation: str
    """The relation to the base model: `adapter` or `finetune`."""
    licence: str | None
    """The base model's licence, as the Hub names it; None if it is not known."""
    pipeline_tag: str
    """The Hub's name of what the model does: `text-to-image` or `text-to-video`."""
    tags: Sequence[str]
    trigger_word: str | None
    images: Sequence[Mapping[str, Any]]
    """The validation images, as in `prompts.json`."""
    usage: str
    """The section on how to use the files, in Markdown."""
    settings: Sequence[tuple[str, str]]
    global_step: int
    max_steps: int


def render(card: ModelCard) -> bytes:
    """Return the file. The same card gives the same bytes."""
    noun = "image" if card.pipeline_tag == "text-to-image" else "clip"
    title = f"{card.noun[:1].upper()}{card.noun[1:]}"
    parts = [
        "\n".join(("---", *_front_matter(card), "---")),
        f"# {title} for {markdown.code(card.hub_id)}" if card.hub_id else f"# {title}",
        "<Gallery />",
        _introduction(card),
        *([_trigger(card.trigger_word)] if card.trigger_word else []),
        f"## How to use it\n\n{card.usage}",
        f"## {noun.capitalize()}s\n\n{_images(card.images, noun)}",
        "## Settings\n\n"
        f"{_table(('setting', 'value'), [(markdown.cell(key), markdown.cell(value)) for key, value in card.settings])}",
        f"## Check the files\n\n{_VERIFYING}",
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _front_matter(card: ModelCard) -> Iterator[str]:
    if card.licence:
        yield f"license: {markdown.quoted(card.licence)}"
    if card.hub_id:
        yield f"base_model: {markdown.quoted(card.hub_id)}"
        yield f"base_model_relation: {card.relation}"
    yield "library_name: diffusers"
    yield f"pipeline_tag: {card.pipeline_tag}"
    yield "tags:"
    yield from (f"- {markdown.quoted(tag)}" for tag in card.tags)
    if card.trigger_word:
        yield f"instance_prompt: {markdown.quoted(card.trigger_word)}"
    yield "widget:"
    for image in card.images:
        yield f"- text: {markdown.quoted(image['prompt'])}"
        yield f"  output:\n    url: {markdown.quoted(_place(image))}"


def _introduction(card: ModelCard) -> str:
    steps = plural(card.global_step, "step")
    length = steps if card.global_step >= card.max_steps else f"{steps} of {card.max_steps:,}"
    licence = f" The base model's licence is {markdown.code(card.licence)}." if card.licence else ""
    known = "the base model" if card.hub_id else "a base model from a folder or a file"
    return f"Trained for {length} on {known} {markdown.code(card.identity)}.{licence}"


def _trigger(word: str) -> str:
    return f"## Trigger word\n\nWrite {markdown.code(word)} in the prompt."


def _images(images: Sequence[Mapping[str, Any]], noun: str) -> str:
    rows = [
        (f"[{_place(image)}]({_place(image)})", markdown.cell(image["prompt"]), str(image["seed"])) for image in images
    ]
    return _table((noun, "prompt", "seed"), rows)


def _place(image: Mapping[str, Any]) -> str:
    return f"{PICTURES}/{image['file']}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

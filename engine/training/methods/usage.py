"""Write how published weights are used in Diffusers, for model cards. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from engine.models.base_model import BaseModel
from engine.results.report import markdown
from engine.training.methods.method import About

FOLDER: Final = 'folder = "path/to/this/folder"  # or the name of this repository on the Hub'
_NO_NAME: Final = "path/to/the/base/model"
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def hub_id(base: BaseModel) -> str | None:
    """Return the base model's Hub ID; None for a folder or a file."""
    return base.identity.rpartition("@")[0] if base.revision else None


def diffusers(
    about: About,
    image: Mapping[str, Any],
    *,
    imports: Iterable[tuple[str, str]] = (),
    load_before: Sequence[str] = (),
    parts: Sequence[str] = (),
    load_after: Sequence[str] = (),
) -> str:
    """Return Python code that draws a validation image, in a fenced block.

    Args:
        about: the training.
        image: a validation image, as `prompts.json` describes it.
        imports: module and class of what `load_before` needs.
        load_before: lines before the base model is loaded.
        parts: arguments with which the base model is loaded.
        load_after: lines that add something to the base model `pipe`.
    """
    spec = about.base.family
    trained = {part.partition("=")[0] for part in parts}
    elsewhere = [name for name in about.base.elsewhere if name in spec.weighted and name not in trained]
    others = [f"{name}={name}" for name in elsewhere]
    more = [class_of(about.base, name) for name in elsewhere]
    saving, to_save = _saving(image)
    classes = dict.fromkeys([("diffusers", spec.pipeline), *imports, *more, *to_save])
    modules = sorted({module for module, _ in classes})
    names = {module: sorted(name for own, name in classes if own == module) for module in modules}
    loader = "from_pretrained" if about.base.single_file is None else "from_single_file"
    absent = [f"{component}=None" for component in sorted(about.base.absent)]  # else Diffusers looks for it
    arguments = ", ".join(("base", *parts, *others, *absent, *_variant(about.base), "dtype=torch.float32"))
    prompt = f"{spec.argument_names['prompt']}=prompt" if "prompt" in spec.argument_names else "prompt"
    lines = [
        "import torch",
        *(f"from {module} import {', '.join(own)}" for module, own in names.items()),
        "",
        f"base = {hub_id(about.base) or _NO_NAME!r}",
        FOLDER,
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        "",
        *load_before,
        *(_loaded(about.base, name) for name in elsewhere),
        f"pipe = {spec.pipeline}.{loader}({arguments}).to(device)",
        *load_after,
        *(["pipe.vae.enable_tiling()"] if "num_frames" in image else []),
        f'generator = torch.Generator("cpu").manual_seed({int(image["seed"])})',
        f"prompt = {image['prompt']!r}",
        saving.format(f"pipe({prompt}, {_options(about, image)}, generator=generator)"),
    ]
    return markdown.fenced("\n".join(lines), "python")


def _saving(image: Mapping[str, Any]) -> tuple[str, Sequence[tuple[str, str]]]:
    """Return lines that save what a call draws, with {} for the call, and the module and name of what it needs."""
    if "num_frames" not in image:
        return '{}.images[0].save("image.png")', ()
    if image["num_frames"] == 1:
        return '{}.frames[0][0].save("image.png")', ()
    fps = f"{image['frame_rate']:g}"
    export = f'export_to_video(frames, "clip.mp4", fps={fps})  # needs: pip install imageio imageio-ffmpeg'
    return f"frames = {{}}.frames[0]\n{export}", [("diffusers.utils", "export_to_video")]


def _loaded(base: BaseModel, component: str) -> str:
    """Return the line that loads a component from elsewhere."""
    found, (_, cls) = base.elsewhere[component], class_of(base, component)
    name, wanted = f"path/to/the/{component}", found.wanted
    if found.revision is None:
        loader = "from_single_file" if found.place.single_file else "from_pretrained"
        return f"{component} = {cls}.{loader}({name!r}, dtype=torch.float32)"
    inner = found.identity.partition("@")[2].partition("/")[2]
    options = {"revision": found.revision, "subfolder": inner, "variant": wanted.variant}
    said = "".join(f"{key}={value!r}, " for key, value in options.items() if value)
    return f"{component} = {cls}.from_pretrained({wanted.name!r}, {said}dtype=torch.float32)"


def _variant(base: BaseModel) -> tuple[str, ...]:
    """Return the argument for the variant in the files' names, where all of them have the same."""
    found = {variant for component, variant in base.variants.items() if component not in base.elsewhere}
    name = found.pop() if len(found) == 1 else None
    return (f"variant={name!r}",) if name else ()


def _options(about: About, image: Mapping[str, Any]) -> str:
    spec = about.base.family
    drawn = spec.drawing.of(about.task.validation)
    options = {
        "num_inference_steps": image.get("num_inference_steps", drawn.num_inference_steps),
        "guidance_scale": image.get("guidance_scale", drawn.guidance_scale),
        "height": image.get("height", about.task.train_args.resolution),
        "width": image.get("width", about.task.train_args.resolution),
    }
    if "num_frames" in image:
        options["num_frames"] = image["num_frames"]
        options |= {"frame_rate": image["frame_rate"]} if "frame_rate" in spec.argument_names else {}
    tokens = spec.caption_tokens
    if tokens.step == 1:  # such pipelines have a default of their own
        options["max_sequence_length"] = tokens.of(about.task.dataset)
    if "negative_prompt" in image and spec.takes_negative_prompt:
        options["negative_prompt"] = image["negative_prompt"]
    elif spec.empty_prompt:
        options["negative_prompt"] = spec.empty_prompt
    names = spec.argument_names
    return ", ".join(f"{names.get(name, name)}={value!r}" for name, value in options.items())


def class_of(base: BaseModel, component: str) -> tuple[str, str]:
    """Return the module and the name of a component's class, from its configuration."""
    config = base.config(component)
    module, found = "diffusers", config.get("_class_name")
    if found is None:
        named = config.get("architectures")
        module, found = "transformers", named[0] if isinstance(named, list) and named else None
    return module, found if isinstance(found, str) and _IDENTIFIER.fullmatch(found) else "AutoModel"

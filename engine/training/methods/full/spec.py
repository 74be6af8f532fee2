"""The row of whole-model training: all weights of the denoiser, and of the text encoders if these are trained.

No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.models.parts.tape import Tape, WholeTape
from engine.models.spec import FamilySpec
from engine.results.report.words import Words
from engine.task.task import Task
from engine.training.methods.full import distance
from engine.training.methods.full.checks import check, notes
from engine.training.methods.full.files import is_complete, is_step_ending, step_ending
from engine.training.methods.full.start_folder import DENOISERS, find_start
from engine.training.methods.method import About, MethodSpec
from engine.training.methods.usage import class_of, diffusers

_USUAL_RATE: Final = 1e-5
"""The learning rate in the documentation of Diffusers' `train_text_to_image.py`, which trains four images a step."""


def invariants(family: FamilySpec, task: Task) -> dict[str, Any]:
    """Return nothing: besides `training_type` and `train_text_encoder` there is nothing to agree on."""
    return {}


def tapes(family: FamilySpec, task: Task, value_bytes: int, norm_bytes: int) -> tuple[Tape, Tape]:
    """Return the tapes of a training step; see `MethodSpec.tapes`."""
    text_tape = WholeTape if task.train_args.train_text_encoder else Tape
    return (
        WholeTape(width=value_bytes, norm_width=norm_bytes),
        text_tape(width=value_bytes, norm_width=norm_bytes),
    )


def usage(about: About, image: Mapping[str, Any]) -> str:
    """Return how the files are used; see `MethodSpec.usage`."""
    spec, args = about.base.family, about.task.train_args
    components = spec.trained_components(with_text_encoders=args.train_text_encoder)
    classes = {name: class_of(about.base, name) for name in components}
    code = diffusers(
        about,
        image,
        imports=classes.values(),
        load_before=[
            f'{name} = {classes[name][1]}.from_pretrained(folder, subfolder="{name}", dtype=torch.float32)'
            for name in components
        ],
        parts=[f"{name}={name}" for name in components],
    )
    return (
        f"### Diffusers\n\n{code}\n\n### ComfyUI, AUTOMATIC1111, Forge\n\n"
        "They load whole models from one file. sd-lora-task writes it from the output folder `OUT`:\n"
        "`entrypoint.py export OUT --format single_file --output my-model.safetensors`."
    )


FULL: Final = MethodSpec(
    module="engine.training.methods.full.method",
    words=Words(
        noun="a whole model",
        many="models",
        new="the base model's weights",
        trained="the training",
        title="Whole-model training",
        event="weights",
    ),
    reads=(),
    usual_rate=_USUAL_RATE,
    main_file=" or ".join(sorted(f"{name}/" for name in DENOISERS)),
    step_ending=step_ending,
    is_step_ending=is_step_ending,
    is_complete=is_complete,
    is_in=distance.is_in,
    distances=distance.distances,
    published="engine.training.methods.full.published",
    invariants=invariants,
    trained_weights=lambda family, task: family.trained_components(
        with_text_encoders=task.train_args.train_text_encoder
    ),
    find_start=find_start,
    check=check,
    notes=notes,
    needs_original_weights=lambda task: (
        "training_type 'full' trains the weights themselves; remove this key, or train a LoRA"
    ),
    is_whole_model=True,
    tapes=tapes,
    smaller=lambda task: iter(()),
    lighter="lora",
    copies=lambda task: 1,
    published_bytes=lambda task: 4 if task.mixed_precision == "no" else 2,
    hub_tags=("full",),
    relation="finetune",
    usage=usage,
)

"""The row of whole-model training: all weights of the denoiser, and of the text encoders if these are trained.

No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from engine.models.parts.tape import Tape
from engine.models.spec import FamilySpec
from engine.task.task import Task
from engine.training.methods.full.checks import check, notes
from engine.training.methods.full.files import is_complete, is_step_ending, step_ending
from engine.training.methods.full.start_folder import DENOISERS, find_start
from engine.training.methods.method import About, Change, MethodSpec
from engine.training.methods.usage import class_of, diffusers


def invariants(family: FamilySpec, task: Task) -> dict[str, Any]:
    """Return nothing: besides `training_type` and `train_text_encoder` there is nothing to agree on."""
    return {}


def tapes(family: FamilySpec, task: Task, value_bytes: int, norm_bytes: int) -> tuple[Tape, Tape]:
    """Return the tapes of a training step; see `MethodSpec.tapes`."""
    tape = Tape(is_adapted=lambda name: True, rank=0, width=value_bytes, norm_width=norm_bytes)
    return tape, replace(tape)


def smaller(task: Task) -> Iterator[Change]:
    """Yield the task without text encoders; see `MethodSpec.smaller`."""
    args = task.train_args
    if args.train_text_encoder:
        yield {"train_text_encoder": "false"}, replace(task, train_args=replace(args, train_text_encoder=False))


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
        f"### Diffusers\n\n{code}\n\n### ComfyUI, AUTOMATIC1111, Forge\n\nThey load whole models from one file: "
        "`entrypoint.py export --help` of sd-lora-task says how to write it."
    )


FULL: Final = MethodSpec(
    module="engine.training.methods.full.method",
    noun="a whole model",
    main_file=" or ".join(sorted(f"{name}/" for name in DENOISERS)),
    step_ending=step_ending,
    is_step_ending=is_step_ending,
    is_complete=is_complete,
    invariants=invariants,
    trained_weights=lambda family, task: family.trained_components(
        with_text_encoders=task.train_args.train_text_encoder
    ),
    find_start=find_start,
    check=check,
    notes=notes,
    tapes=tapes,
    smaller=smaller,
    copies=lambda task: 1,
    hub_tags=("full",),
    relation="finetune",
    usage=usage,
)

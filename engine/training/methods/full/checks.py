"""Checks of a whole-model task that need no loaded model: they read only headers of files. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from engine.core.errors import CheckpointError, ModelError
from engine.models.base_model import BaseModel
from engine.models.single_file.header import read_header
from engine.task.task import Task
from engine.training.methods.base_weights import weight_shapes
from engine.training.methods.full.files import CONFIG, weights_of
from engine.training.methods.warm_start import WarmStart

OTHER_MODEL = "the weights to start from are of another model"


def check(base: BaseModel, task: Task, warm_start: WarmStart | None) -> list[str]:
    """Check that the base model has what is trained, and that a denoiser to start from fits it.

    Returns:
        Lines on what was not checked.

    Raises:
        TaskError: the base model has no text encoders that can be trained.
        CheckpointError: the denoiser to start from is malformed, or of another model.
        ModelError: the base model's weights are malformed.
    """
    spec = base.family
    spec.trained_components(with_text_encoders=task.train_args.train_text_encoder)
    if warm_start is None:
        return []
    if f"{spec.denoiser}/{CONFIG}" not in warm_start.hashes:
        raise CheckpointError(
            f"{OTHER_MODEL}: the base model's denoiser is called {spec.denoiser}, found {warm_start.name}"
        )
    expected = weight_shapes(base, spec.denoiser)
    if not expected:
        where = "in one file" if base.place(spec.denoiser).single_file else "not downloaded yet"
        return [f"note: the weights to start from are checked when the job starts: the base model's are {where}"]
    require_same_shapes(_shapes(warm_start, spec.denoiser), expected)
    return []


def notes(task: Task, warm_start: WarmStart | None) -> list[str]:
    """Return notes on text encoders to start from; see `MethodSpec.notes`."""
    if warm_start is None:
        return []
    has_texts = any(name.startswith("text_encoder") for name in warm_start.hashes)
    if has_texts and not task.train_args.train_text_encoder:
        return [
            "the text encoders in the checkpoint are not used: the base model's stay (train_args.train_text_encoder)"
        ]
    if task.train_args.train_text_encoder and not has_texts:
        return ["the checkpoint has no text encoders: the training of these starts from the base model's weights"]
    return []


def require_same_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless both have the same names and shapes; it names the first difference."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            theirs, ours = (_said(shapes.get(name)) for shapes in (found, expected))
            raise CheckpointError(f"{OTHER_MODEL}: {name} is {theirs}, in the base model it is {ours}")


def _said(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"{shape}"


def _shapes(warm_start: WarmStart, component: str) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name in weights_of(component, warm_start.hashes.keys()):
        try:
            header = read_header(warm_start.folder / name, name)
        except ModelError as error:  # its text is about a base model's file
            raise CheckpointError(f"the weights to start from are malformed: {error}") from None
        found |= {key: tensor.shape for key, tensor in header.tensors.items()}
    return found

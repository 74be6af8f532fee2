"""Export a checkpoint as a whole model or a LoRA file: `entrypoint.py export CHECKPOINT --format … --output PATH`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.commands.export.base import base_of
from engine.commands.program import program
from engine.core.console import Meter, say
from engine.core.errors import Interrupted, OutputError, TaskError
from engine.core.files import built_beside
from engine.core.files.built_beside import Content, Streamed
from engine.core.messages import listing
from engine.job.advice.disk_space import free_bytes
from engine.models.base_model import BaseModel
from engine.results.checkpoint import MANIFEST, Checkpoint
from engine.training.methods import registry

if TYPE_CHECKING:
    from engine.models.export.model import TrainedModel
    from engine.training.methods.published import Published

FORMATS: Final = ("diffusers", "single_file", "lora")
LAYOUTS: Final = ("diffusers", "webui", "peft")
DTYPES: Final = ("fp32", "fp16", "bf16")
_MIB: Final = 1 << 20
_OTHER_BYTES: Final = 16 * _MIB
"""Bytes for headers and small files."""

DESCRIPTION: Final = """\
Make from a checkpoint, with its base model, a whole model or a LoRA file for other programs.

  diffusers     a folder with the whole pipeline, for DiffusionPipeline.from_pretrained(PATH)
  single_file   one .safetensors file with the whole model, for ComfyUI, AUTOMATIC1111, Forge
  lora          the LoRA alone: one .safetensors file, or a folder with --layout peft

A LoRA is merged into the base model in float32, and each weight is rounded once.
"""


def parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    found = argparse.ArgumentParser(
        prog="entrypoint.py export",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("checkpoint", type=Path, help="a checkpoint/ folder, or the output folder that it is in")
    found.add_argument("--format", required=True, choices=FORMATS, help="what to make")
    found.add_argument("--output", required=True, type=Path, metavar="PATH", help="the file or folder to make")
    found.add_argument(
        "--base",
        metavar="MODEL",
        help="the base model of the training: a folder, a .safetensors file, a URL, or a Hub ID with or without "
        "@revision [the model on the Hub that the checkpoint names]",
    )
    found.add_argument(
        "--component",
        metavar="NAME=WHERE",
        action="append",
        default=[],
        help="a part of the base model that came from elsewhere: vae=PATH, once for each in model.components "
        "[those on the Hub]",
    )
    found.add_argument("--dtype", choices=DTYPES, help="the precision of the weights [as stored, see docs/export.md]")
    found.add_argument("--strength", type=float, help="how strongly a LoRA is applied [1]")
    found.add_argument("--layout", choices=LAYOUTS, help="the format of a LoRA [diffusers]")
    found.add_argument("--cache-dir", metavar="DIR", help="the folder for downloads [CACHE_DIR]")
    found.add_argument(
        "--overwrite", action="store_true", help="replace the file at PATH, or the folder that an export made"
    )
    return found


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Export a checkpoint, and return the exit code."""
    flags = parser().parse_args(argv)
    output = flags.output.absolute()
    _check(flags)
    built_beside.require_free(output, overwrite=flags.overwrite)
    folder = _checkpoint_folder(flags.checkpoint.absolute())
    say(f"verifying {folder}")
    checkpoint = registry.load_checkpoint(folder)
    content = _content(flags, environment, folder, checkpoint)
    files = {"": content} if isinstance(content, Streamed) else content
    _require_space(output, files)
    _write(output, content, overwrite=flags.overwrite)
    say(f"wrote {output}")
    return 0


def _check(flags: argparse.Namespace) -> None:
    """Raise TaskError for flags that do not go together."""
    is_alone = flags.format == "lora"
    if flags.layout and not is_alone:
        raise TaskError("--layout is the format of a LoRA: it needs --format lora")
    if is_alone and (unused := "--base" if flags.base else "--component" if flags.component else None):
        raise TaskError(f"{unused} has no effect with --format lora: the base model is not needed")
    if flags.strength is not None and not math.isfinite(flags.strength):
        raise TaskError(f"--strength is {flags.strength}: expected a number such as 0.8")
    is_file = flags.format == "single_file" or (is_alone and flags.layout != "peft")
    if is_file and flags.output.suffix != ".safetensors":
        raise TaskError(f"--output is {str(flags.output)!r}: this format is a file whose name ends in .safetensors")
    if not is_file and flags.output.suffix == ".safetensors":
        raise TaskError(f"--output is {str(flags.output)!r}: this format is a folder, so give it another name")


def _checkpoint_folder(folder: Path) -> Path:
    inner = folder / "checkpoint"
    return inner if (inner / MANIFEST).is_file() and not (folder / MANIFEST).exists() else folder


def _content(
    flags: argparse.Namespace, environment: Mapping[str, str], folder: Path, checkpoint: Checkpoint
) -> Streamed | Mapping[str, Content]:
    """Return what is written: a file, or the files of a folder."""
    from engine.training.methods import published

    found = published.load(folder, checkpoint)
    strength = 1.0 if flags.strength is None else flags.strength
    if flags.format == "lora":
        return found.alone(flags.layout or "diffusers", strength, flags.dtype or "fp32")
    base = base_of(flags, environment, checkpoint)
    model = _trained_model(base, checkpoint, found, strength)
    return _whole(model, flags.format, flags.dtype)


def _whole(model: TrainedModel, target: str, dtype_name: str | None) -> Streamed | Mapping[str, Content]:
    from engine.models.export import diffusers_folder, whole_file
    from engine.models.export.weights import DTYPES as BY_NAME

    dtype = BY_NAME[dtype_name] if dtype_name else None
    if target == "single_file":
        return whole_file.file_of(model, dtype)
    if absent := diffusers_folder.left_out(model):
        say(f"left out, since the base model has no safetensors weights of it here: {listing(absent)}")
    return diffusers_folder.files_of(model, dtype)


def _trained_model(base: BaseModel, checkpoint: Checkpoint, found: Published, strength: float) -> TrainedModel:
    from engine.models.export import weights
    from engine.models.export.model import TrainedModel

    trained, whole = frozenset(found.components(base.family)), {}
    for component in filter(base.has, base.family.weighted):
        whole[component] = weights.of_base(base, component)
        if component in trained:
            whole[component] = found.weights(component, whole[component], base.family, strength)
    world = checkpoint.world
    name, _, commit = base.identity.partition("@")
    return TrainedModel(
        base=base,
        weights=whole,
        trained=trained,
        prediction_type=world["prediction_type"],
        zero_terminal_snr=bool(world.get("zero_terminal_snr")),
        resolution=int(world["resolution"]),
        title=f"{name if commit else name[:19]}, trained for {checkpoint.global_step} steps",
    )


def _require_space(output: Path, files: Mapping[str, Content]) -> None:
    """Raise OutputError if the files do not fit on the disk."""
    needed, free = built_beside.new_bytes(output, files) + _OTHER_BYTES, free_bytes(output)
    if free is not None and needed > free:
        raise OutputError(
            f"not enough disk space for {output}: it takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free; free some space, or choose another --output"
        )


def _write(output: Path, content: Streamed | Mapping[str, Content], *, overwrite: bool) -> None:
    files = {"": content} if isinstance(content, Streamed) else content
    meter = Meter("exporting", "MiB", math.ceil(sum(map(_size, files.values())) / _MIB))
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        meter.update(done // _MIB)

    try:
        if isinstance(content, Streamed):
            built_beside.write_one(output, content, overwrite=overwrite, written=written)
        else:
            built_beside.write_folder(output, content, overwrite=overwrite, written=written)
    except Interrupted as error:
        raise Interrupted(error.code - 128, f"stopped by a signal; nothing was written to {output}") from None
    finally:
        meter.close()


def _size(content: Content) -> int:
    if isinstance(content, Path):
        return content.stat().st_size
    return content.num_bytes if isinstance(content, Streamed) else len(content)

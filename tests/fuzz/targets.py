"""What is fuzzed: each target takes bytes from a stranger and gives a value, or raises the error of its kind."""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy

from engine.core.errors import CheckpointError, DatasetError, TaskError
from engine.core.limits import Limits
from engine.data.dataset.open import open_dataset
from engine.data.dataset.tables.tar_headers import BoundedHeaders, Member, members
from engine.data.fetch.archive import extract
from engine.data.media.geometry import UnreadableImage, geometry
from engine.data.media.image import IMAGE, image_size, render
from engine.data.media.video.decoding import check as check_clip
from engine.data.media.video.decoding import frames as clip_frames
from engine.data.media.video.decoding import read_facts
from engine.models.families.sd.spec import SPEC
from engine.results import held_out_rows, history
from engine.results.checkpoint import Checkpoint
from engine.results.state import TrainState, read_state
from engine.task.task import Dataset, Task, parse_task
from engine.training.methods.lora.formats.files import read_diffusers_file
from engine.training.methods.registry import METHODS, load_parent
from tests.fuzz import inputs
from tests.support.states import parse_state

LIMITS = Limits(max_dataset_bytes=8 << 20, ratio_free_bytes=1 << 20, max_files=200)
SCALARS = {"global_step": 1, "optimizer_step": 1, "loss_scale": None}


@dataclass(frozen=True, slots=True)
class Target:
    """`run` gives a value that has passed its checks, or raises `error`, whose message is one line."""

    inputs: SearchStrategy[Any]
    run: Callable[[Any], object]
    error: type[Exception]


def _task(data: bytes) -> Task:
    task = parse_task(data, source="fuzz")
    assert hash(task) is not None
    return task


def _archive(data: bytes) -> list[str]:
    """Everything that is left lies inside, and is a plain file."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        into = root / "into"
        into.mkdir()
        (root / "archive").write_bytes(data)
        try:
            extract(root / "archive", into, LIMITS)
        finally:
            assert {path.name for path in root.iterdir()} <= {"archive", "into"}
            for path in into.rglob("*"):
                mode = path.lstat().st_mode
                assert stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and not mode & 0o7111)
        found = [str(path.relative_to(into)) for path in into.rglob("*") if path.is_file()]
        assert found
        assert sum((into / path).stat().st_size for path in found) <= LIMITS.max_dataset_bytes
        return found


def _tar_members(data: bytes) -> list[Member]:
    """Find the members that tarfile finds, and refuse what it refuses."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        outcomes = []
        for read in (lambda: list(members(file.fileno(), "t.tar")), lambda: _by_tarfile(file.fileno(), len(data))):
            file.seek(0)
            try:
                outcomes.append(read())
            except Exception as error:
                outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]
    if not isinstance(outcomes[0], list):
        raise DatasetError("refused")
    return outcomes[0]


def _by_tarfile(descriptor: int, num_bytes: int) -> list[Member]:
    with BoundedHeaders(descriptor) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        found = []
        for one in tar:
            if one.isreg() and one.sparse is None:
                if one.offset_data + one.size > num_bytes:
                    raise DatasetError("truncated")
                found.append((one.name, one.offset_data, one.size))
        return found


def _read_lora(data: bytes) -> object:
    return read_diffusers_file(data, SPEC, [SPEC.denoiser], names={})


def _checkpoint(files: dict[str, bytes]) -> object:
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            Path(name, file).write_bytes(data)
        found = load_parent(Path(name), METHODS["lora"])
        if not isinstance(found, Checkpoint):
            return _read_lora(found.weights)
        assert type(found.global_step) is int
        state = _checked(read_state(found.state_files, found.state_scalars))
    return state, history.parse(found.history), held_out_rows.parse(found.held_out_losses)


def _state(data: bytes, scalars: dict[str, Any]) -> TrainState:
    return _checked(parse_state(data, scalars))


def _checked(state: TrainState) -> TrainState:
    for named in (state.trained, *state.optimizer.slots.values()):
        kinds = {torch.float32} if named is state.trained else {torch.float32, torch.uint8}
        assert all(tensor.dtype in kinds for tensor in named.values())
    return state


def _table(file: tuple[str, bytes]) -> int:
    name, data = file
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "data").mkdir()
        (folder / "data" / name).write_bytes(data)
        wanted = Dataset(name=str(folder / "data"))
        dataset = open_dataset(
            wanted, IMAGE, cache_dir=folder / "cache", revision=None, report=lambda line: None, limits=LIMITS
        )
        for index in range(min(len(dataset), 20)):
            assert all(type(caption) is str for caption in dataset.captions(index))
            assert dataset.name(index).isprintable()
        return len(dataset)
    finally:
        shutil.rmtree(folder)


def _video(data: bytes) -> tuple[int, ...]:
    """Decode it as the check does, then the frames that a training would show; its facts are as good as they say."""
    facts = check_clip(data, 24.0)
    assert facts.frames > 0 and facts == read_facts(data, 24.0)
    for pixels in clip_frames(data, range(min(facts.frames, 20)), 24.0):
        assert pixels.size
    return facts.extent


def _image(data: bytes) -> tuple[int, ...]:
    size = image_size(data)
    view = geometry(size, target=(64, 64), center_crop=True, crop_words=(0, 0), flip=False)
    pixels = render(data, view)
    assert pixels.shape == (64, 64, 3)
    return pixels.shape


TARGETS = {
    "the task parser": Target(inputs.tasks(), _task, TaskError),
    "the archive reader": Target(inputs.archives(), _archive, DatasetError),
    "the checkpoint loader": Target(inputs.checkpoints(), _checkpoint, CheckpointError),
    "safetensors headers of a state": Target(inputs.safetensors(), lambda data: _state(data, SCALARS), CheckpointError),
    "safetensors headers of a LoRA": Target(inputs.safetensors(), _read_lora, CheckpointError),
    "headers of a tar": Target(inputs.tars(), _tar_members, DatasetError),
    "table files": Target(inputs.tables(), _table, DatasetError),
    "image files": Target(inputs.images(), _image, UnreadableImage),
    "video files": Target(inputs.videos(), _video, UnreadableImage),
}

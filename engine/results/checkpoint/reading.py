"""Read a checkpoint, only after all its hashes are verified. No torch.

A checkpoint is untrusted input: safetensors and JSON, no pickle, and nothing is parsed before it is verified.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePath
from typing import Any, Final

from engine.core.errors import CheckpointError
from engine.core.files.atomic_files import Stored, read_plain
from engine.results.checkpoint import (
    FINISH,
    FOLDER_FILE,
    FORMAT,
    GLOBAL_STEP,
    HELD_OUT,
    HISTORY,
    MANIFEST,
    STATE_FILE,
    STATE_JSON,
    STATE_STEM,
    STEPS,
    Checkpoint,
    digest_of,
    sha256_of,
    spelled,
    step_of,
    step_text,
)

_REQUIRED: Final = {STATE_JSON, HISTORY, GLOBAL_STEP}
"""Files of every checkpoint, besides the state's tensors and the weights, whose files the training method names."""
_PICTURES: Final = (".png", ".mp4")
"""Suffixes of the baseline's images and clips."""
_MAX_MANIFEST_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = 32 << 30
"""Upper bound for one file. Rank 1024 on all linear layers of a denoiser of 2.6 G parameters, with both moments, is
about 20 GB."""
_MAX_BYTES: Final = {STATE_JSON: 32 << 20, HISTORY: 1 << 30, HELD_OUT: 1 << 30, GLOBAL_STEP: 1 << 10, FINISH: 1 << 10}
"""Upper bounds for files that are parsed: their values take twenty times as much memory. A task in `state.json` takes
1 KB, a step in `history.jsonl` 100 bytes."""
_CHUNK_BYTES: Final = 1 << 20
_NOT_AS_WRITTEN: Final = "is not written as this program writes it"
_MAX_DEPTH: Final = 64
"""Upper bound for the nesting of values in `state.json`: writing them again recurses deeper than reading them."""


def names_in(folder: Path) -> set[str]:
    """Return the names of a folder's entries.

    Raises:
        CheckpointError: it is not a folder, or cannot be read.
    """
    try:
        return {path.name for path in folder.iterdir()}
    except NotADirectoryError:
        raise CheckpointError(f"the checkpoint {folder} is a file: give the folder that contains it") from None
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint folder {folder} cannot be read ({error.strerror}); check its path and its mount"
        ) from None


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint. The training method checks which weights are in it.

    Raises:
        CheckpointError: it is missing, incomplete, corrupt or malformed.
    """
    names = names_in(folder)
    if MANIFEST not in names:
        require_no_remains(folder, names)
        raise CheckpointError(f"{folder} holds no checkpoint: there is no {MANIFEST} in it")
    manifest = _read_manifest(folder)
    files, stored = _read_files(folder, manifest["files"])
    try:
        state_json = json.loads(files[STATE_JSON])
        if _is_deeper(state_json, _MAX_DEPTH):
            raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")
        world, lineage = dict(state_json["world"]), _objects(state_json["lineage"])
        problem = _misspelling(STATE_JSON, state_json, files[STATE_JSON], state_json, world, *lineage)
        if problem:
            raise CheckpointError(f"{folder / STATE_JSON} {_NOT_AS_WRITTEN} ({problem}); use another checkpoint")
        if state_json["format"] != FORMAT:
            raise CheckpointError(f"{folder} has format {state_json['format']!r}, but this version reads only {FORMAT}")
        scalars = dict(state_json["state"])
        step = scalars["global_step"]
        if type(step) is not int or step < 0:
            raise ValueError(f"step {step!r}")
        if not step == manifest["global_step"] or files[GLOBAL_STEP] != step_text(step):
            raise CheckpointError(f"the files of {folder} disagree about its global step; use another checkpoint")
        return Checkpoint(
            digest=manifest["digest"],
            manifest=manifest,
            global_step=step,
            state_files={name: file for name, file in stored.items() if STATE_FILE.fullmatch(name)},
            state_scalars=scalars,
            world=world,
            settings=dict(state_json["settings"]),
            lineage=lineage,
            history=files[HISTORY],
            baseline=_objects(state_json["baseline"]),
            pictures={name: data for name, data in files.items() if name.endswith(_PICTURES)},
            finished=FINISH in files,
            held_out_losses=files.get(HELD_OUT, b""),
            steps=_earlier({name: file for name, file in stored.items() if step_of(name) is not None}, step),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / STATE_JSON} is malformed ({error!r}); use another checkpoint") from None


def _misspelling(name: str, value: Any, data: bytes, *objects: Mapping[str, Any]) -> str | None:
    """Describe how the bytes of a JSON file differ from those that this program writes for its value; None if equal.

    A digest is over values. If other bytes of the same value were accepted, or a null in place of an absent key, two
    different results could have one digest. `objects` are the parts of the value in which only `parent` may be null.
    """
    nulls = [key for part in objects for key in part if part[key] is None and key != "parent"]
    if nulls:
        return f"{nulls[0][:40]!r} is null"
    return None if spelled(name, value) == data else "other white space, another order, or a repeated key"


def _earlier(steps: dict[str, Stored], global_step: int) -> dict[str, Stored]:
    for name in steps:
        if not 0 < (step_of(name) or 0) < global_step:
            raise CheckpointError(f"the checkpoint holds {name}, but is of step {global_step}; use another checkpoint")
    return steps


def _is_deeper(value: Any, levels: int) -> bool:
    """Return whether a JSON value has more than `levels` levels of nesting."""
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(
        _is_deeper(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TypeError(f"expected a list of objects, got {str(value)[:40]}")
    return value


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    problem = f"{path} is not a checkpoint's manifest; use another checkpoint"
    try:
        data = read_plain(path, _MAX_MANIFEST_BYTES)
        if data is None:
            raise CheckpointError(problem)
        manifest = json.loads(data)
        files = manifest["files"]
        digest_agrees = manifest["digest"] == digest_of(manifest)
        misspelling = _misspelling(MANIFEST, manifest, data, manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(problem) from None
    if not isinstance(files, dict) or not set(files) >= _REQUIRED:
        raise CheckpointError(problem)
    if not digest_agrees:
        raise CheckpointError(f"{path} is corrupt: its digest does not match its contents; copy it again")
    if misspelling:
        raise CheckpointError(f"{path} {_NOT_AS_WRITTEN} ({misspelling}); use another checkpoint")
    if not isinstance(manifest.get("base_model"), dict) or not isinstance(manifest.get("dataset"), dict):
        raise CheckpointError(problem)
    _require_whole_state(path, files.keys())
    return dict(manifest)


def _require_whole_state(path: Path, names: Set[str]) -> None:
    """Raise CheckpointError unless a manifest lists the state's only file, or each of its shards and no other file."""
    found = sorted(name for name in names if STATE_FILE.fullmatch(name))
    shards = [match for name in found if (match := STATE_FILE.fullmatch(name)) and match[1]]
    count = int(shards[0][2]) if shards else 0
    expected = [f"{STATE_STEM}-{k:05}-of-{count:05}.safetensors" for k in range(1, count + 1)]
    expected = expected or [f"{STATE_STEM}.safetensors"]
    missing = next((name for name in expected if name not in names), None)
    if missing:
        raise CheckpointError(f"{path} does not list {missing}, a file of the training state; use another checkpoint")
    if found != expected:
        raise CheckpointError(f"{path} lists files of two training states; use another checkpoint")


def _read_files(folder: Path, hashes: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, Stored]]:
    """Return the bytes of the listed files that are parsed or shown, and the others, verified. No other is opened."""
    files: dict[str, bytes] = {}
    stored: dict[str, Stored] = {}
    for name, expected in hashes.items():
        path = folder / name
        try:
            if not _is_own(folder, name) or not _is_plain_file(path):
                raise CheckpointError(
                    f"{folder / MANIFEST} lists {name[:100]!r}, which is not a plain file of the checkpoint"
                )
            _require_size(path, _MAX_BYTES.get(name, _MAX_FILE_BYTES))
            if name in _MAX_BYTES or ("/" not in name and name.endswith(_PICTURES)):
                files[name] = _read_file(path)
                found = sha256_of(files[name])
            else:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                stored[name] = Stored(path, found)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} is incomplete: {name[:100]!r} cannot be read ({error})") from None
        if found != expected:
            raise CheckpointError(f"{path} is corrupt: its SHA-256 differs from the manifest's; copy it again")
    return files, stored


def _is_own(folder: Path, name: str) -> bool:
    """Return whether a name is that of a file in the folder itself, in a component's folder, or of an earlier step.

    Raises:
        OSError: a folder of it is missing.
    """
    if Path(name).name == name:
        return True
    if step_of(name) is None and (not FOLDER_FILE.fullmatch(name) or name.startswith(f"{STEPS}/")):
        return False
    inner = PurePath(name).parents[:-1]
    return all(stat.S_ISDIR((folder / one).lstat().st_mode) for one in inner)  # a link may lead anywhere


def _require_size(path: Path, most: int = _MAX_FILE_BYTES) -> None:
    size = path.stat().st_size
    if size > most:
        raise CheckpointError(f"{path} has {size:,} bytes, too many for a checkpoint; use another one")


def _read_file(path: Path) -> bytes:
    """Return a file's bytes. Raises CheckpointError if they do not fit into memory."""
    try:
        return path.read_bytes()
    except MemoryError:
        size = path.stat().st_size
        raise CheckpointError(f"{path} has {size:,} bytes, more than fit into this machine's memory") from None


def _is_plain_file(path: Path) -> bool:
    """Return whether a path is a plain file: not a link, nor a pipe without end. Raises OSError if it is missing."""
    return stat.S_ISREG(path.lstat().st_mode)


def require_no_remains(folder: Path, names: Set[str]) -> None:
    """Raise CheckpointError if a folder without a manifest holds other files of a checkpoint."""
    own = {STATE_JSON, GLOBAL_STEP, FINISH}
    leftovers = sorted(name for name in names if name in own or STATE_FILE.fullmatch(name))
    if leftovers:
        raise CheckpointError(f"{folder} is incomplete: it has {leftovers[0]} but no {MANIFEST}; copy it again")


def read_plain_file(path: Path) -> bytes:
    """Return a file's bytes. Raises CheckpointError if it is not a plain file, OSError if it cannot be read."""
    _require_plain(path)
    return _read_file(path)


def plain_chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in pieces. Raises the errors of `read_plain_file`."""
    _require_plain(path)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _require_plain(path: Path) -> None:
    if not _is_plain_file(path):
        raise CheckpointError(f"{path} is a link or not a file; copy the file itself there")
    _require_size(path)

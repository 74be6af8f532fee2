"""A checkpoint as one value: its files, their names, and its digest. `reading` verifies and reads it. No torch.

`manifest.json` lists every file with its SHA-256; its own `digest` is over everything else in it, so one digest names
all the bytes. `state.py` turns the training state into files and back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from engine.core.canonical_json import canonical_json
from engine.core.files.atomic_files import Contents, Stored

FORMAT: Final = 1
STATE_STEM: Final = "state"
"""The first part of the names of the files with the training state's tensors: `state.safetensors`, or shards."""
STATE_JSON: Final = "state.json"
HISTORY: Final = "history.jsonl"
HELD_OUT: Final = "heldout.jsonl"
GLOBAL_STEP: Final = "global_step.txt"
FINISH: Final = "FINISH"
MANIFEST: Final = "manifest.json"
CARD: Final = "README.md"
"""The model card. Nothing is read from it."""

STEPS: Final = "steps"
"""The folder for the weights of earlier steps."""
_IN_FOLDER: Final = r"[a-z][a-z0-9_]*/[A-Za-z0-9_][A-Za-z0-9_.-]*"
"""A file of the weights in the folder of a component."""
FOLDER_FILE: Final = re.compile(_IN_FOLDER)
_STEP_FILE: Final = re.compile(rf"{STEPS}/([0-9]{{6,19}})((?:_[a-z]+)?\.safetensors|/{_IN_FOLDER})")
STATE_FILE: Final = re.compile(rf"{STATE_STEM}(?:-([0-9]{{5}})-of-([0-9]{{5}}))?\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint. `world` holds the invariants of its chain, `lineage` has one entry per task."""

    digest: str
    manifest: dict[str, Any]
    global_step: int
    state_files: dict[str, Stored]
    """The files of the training state's tensors by name. They stay on disk, since they may be large."""
    state_scalars: dict[str, Any]
    world: dict[str, Any]
    settings: dict[str, Any]
    lineage: list[dict[str, Any]]
    history: bytes
    baseline: list[dict[str, Any]]
    """The images of the chain's baseline: file, prompt and seed of each."""
    pictures: dict[str, bytes]
    """The baseline's images and clips, PNG and MP4 files, by name."""
    finished: bool
    held_out_losses: bytes = b""
    """The chain's held-out losses; empty if none were measured."""
    steps: dict[str, Stored] = field(default_factory=dict)
    """Weights of earlier steps of the chain, by file (`step_file`). They stay on disk, since they may be large."""


def build_files(
    *,
    global_step: int,
    state_files: Mapping[str, Contents],
    state_scalars: Mapping[str, Any],
    weights: Mapping[str, Contents],
    world: Mapping[str, Any],
    settings: Mapping[str, Any],
    lineage: list[dict[str, Any]],
    history: bytes,
    baseline: list[dict[str, Any]],
    pictures: Mapping[str, bytes],
    finished: bool,
    manifest: Mapping[str, Any],
    card: bytes = b"",
    held_out_losses: bytes = b"",
    steps: Mapping[str, Contents] | None = None,
) -> tuple[dict[str, Contents], str]:
    """Return all files of a `checkpoint/` folder by name, and the checkpoint's digest.

    The same arguments give the same bytes: no clock, no host, no path. `weights` are the training method's files.
    """
    state_json = {
        "format": FORMAT,
        "state": dict(state_scalars),
        "world": dict(world),
        "settings": dict(settings),
        "lineage": lineage,
        "baseline": baseline,
    }
    files: dict[str, Contents] = {
        STATE_JSON: canonical_json(state_json),
        HISTORY: history,
        GLOBAL_STEP: step_text(global_step),
    }
    files |= {**state_files, **weights, **pictures, **(steps or {})}
    if card:
        files[CARD] = card
    if held_out_losses:
        files[HELD_OUT] = held_out_losses
    if finished:
        files[FINISH] = b""
    body = {
        **manifest,
        "files": {name: sha256_of(data) for name, data in sorted(files.items())},
        "global_step": global_step,
    }
    digest = digest_of(body)
    files[MANIFEST] = spelled(MANIFEST, {**body, "digest": digest})
    return files, digest


def spelled(name: str, value: Any) -> bytes:
    """Return the only bytes that `manifest.json` or `state.json` may have for a value.

    Raises:
        ValueError: JSON cannot represent the value.
    """
    if name == MANIFEST:
        return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    return canonical_json(value)


def step_text(step: int) -> bytes:
    """Return the content of `global_step.txt`."""
    return f"{step}\n".encode()


def sha256_of(data: Contents) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    return data.sha256 if isinstance(data, Stored) else hashlib.sha256(data).hexdigest()


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest, over everything in it but the digest itself."""
    return hashlib.sha256(canonical_json({key: manifest[key] for key in manifest if key != "digest"})).hexdigest()


def step_file(step: int, ending: str) -> str:
    """Return the name of an earlier step's file, which has this ending: `.safetensors`, `_<kind>.safetensors`."""
    return f"{STEPS}/{step:06}{ending}"


def step_of(name: str) -> int | None:
    """Return the step in the name of an earlier step's file; None for any other name."""
    found = _STEP_FILE.fullmatch(name)
    return int(found[1]) if found and name == step_file(int(found[1]), found[2]) else None


def step_ending(name: str) -> str:
    """Return the ending of the name of an earlier step's file (see `step_file`)."""
    return name.removeprefix(step_file(step_of(name) or 0, ""))


def is_state_file(name: str) -> bool:
    """Return whether a file of this name has tensors of the training state."""
    return STATE_FILE.fullmatch(name) is not None

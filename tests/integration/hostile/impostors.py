"""Checkpoints from strangers whose files are not what they seem, or are more than any checkpoint's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.hostile.case import MIB, Cases
from tests.integration.hostile.checkpoints import FILES, STATE, forge, resumed, scalars, seal
from tests.integration.hostile.models import PICKLE

LORA = FILES[0]


def manifest_text(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_bytes(change(path.read_bytes()))

    return damage


def claimed(name: str, size: int) -> Callable[[Path], None]:
    """A file of `size` zeros, most of them not there, with its right hash."""

    def damage(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        with (folder / name).open("rb") as file:
            manifest["files"][name] = hashlib.file_digest(file, "sha256").hexdigest()
        seal(folder, manifest)

    return damage


def device(name: str) -> Callable[[Path], None]:
    """Which only root can make; anybody else gets a link to it."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return damage


def lookalike(folder: Path) -> None:
    """A Cyrillic letter in the name of the state, whose own file is gone."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    other = STATE.replace("a", "\u0430", 1)
    (folder / STATE).rename(folder / other)
    manifest["files"][other] = manifest["files"].pop(STATE)
    seal(folder, manifest)


def beside_lookalike(folder: Path) -> None:
    """The state is there, and another one that is called nearly so."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    other = STATE.replace("a", "\u0430", 1)
    (folder / other).write_bytes(PICKLE)
    manifest["files"][other] = hashlib.sha256(PICKLE).hexdigest()
    seal(folder, manifest)


def hard_linked(folder: Path) -> None:
    """To a file outside that must not change when the job writes."""
    os.link(folder / LORA, folder.parent / "outside")


def folder_instead(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def behind_link(folder: Path) -> None:
    """The checkpoint itself is a link to a link to itself."""
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def steps(value: Any) -> Callable[[Path], None]:
    """The same step in all three places."""
    text = json.dumps(value).encode()
    return forge(
        state__json=scalars("state.global_step", value),
        global_step__txt=lambda _: text + b"\n",
        manifest=scalars("global_step", value),
    )


CASES: Cases = {
    "a manifest of a device": resumed(device("manifest.json"), 5, "manifest"),
    "a state of a device": resumed(device(STATE), 5, "plain file", quick=True),
    "a state that is a folder": resumed(folder_instead(STATE), 5, "plain file"),
    "a manifest that is a folder": resumed(folder_instead("manifest.json"), 5, "manifest"),
    "a LoRA that is linked elsewhere": resumed(hard_linked, 0, train=True),
    "a folder that is a link to itself": resumed(behind_link, 5),
    "a state by a name like its own": resumed(lookalike, 5, "manifest"),
    "another state beside": resumed(beside_lookalike, 0, train=True),
    "a key twice": resumed(
        manifest_text(lambda data: data.replace(b"{", b'{"digest": "0", "files": {"../../secret.png": "0"},', 1)),
        5,
        "not written as",
    ),
    "a key twice, the last one forged": resumed(
        manifest_text(lambda data: data.rstrip()[:-1] + b', "global_step": 2}'), 5, "corrupt"
    ),
    "a byte order mark": resumed(manifest_text(lambda data: b"\xef\xbb\xbf" + data), 5, "not written as"),
    "UTF-16": resumed(manifest_text(lambda data: data.decode().encode("utf-16")), 5, "not written as"),
    "NaN in a manifest": resumed(manifest_text(lambda data: data.replace(b"{", b'{"x": NaN,', 1)), 5, "manifest"),
    "a million keys": resumed(
        manifest_text(lambda data: data.replace(b"{", b"{" + b'"a":0,' * 150_000, 1)), 5, "corrupt"
    ),
    "a file name of a megabyte": resumed(
        manifest_text(lambda data: data.replace(b'"files": {', b'"files": {"' + b"a" * 900_000 + b'": "0",', 1)), 5
    ),
    "a file name with a NUL": resumed(forge(manifest=scalars("files.a\0b", "0")), 5),
    "a file name with escape codes": resumed(forge(manifest=scalars("files", {"\x1b[2J": "0"})), 5),
    "an empty file name": resumed(
        forge(manifest=lambda d: d.replace(b'"files": {', b'"files": {"": "0", ', 1)), 5, "plain file"
    ),
    "a hash that is a number": resumed(
        forge(manifest=lambda d: d.replace(b'"files": {', b'"files": {"FINISH": 0, ', 1)), 5
    ),
    "a step of a gigabyte": resumed(claimed("global_step.txt", 1 << 30), 5, "too many for a checkpoint", seconds=120),
    "a state.json of a gigabyte": resumed(claimed("state.json", 1 << 30), 5, "too many for a checkpoint", seconds=120),
    "a state.json of small things": resumed(
        forge(state__json=lambda d: d[:-1] + b', "x": [' + b"{}," * (40 * MIB // 3) + b"0]}"),
        5,
        "too many for a checkpoint",
    ),
    **{
        f"a depth of {levels} in {key}": resumed(
            forge(state__json=scalars(key, [{"a": deep(levels)}] if key == "lineage" else {"a": deep(levels)})),
            5,
            "deep",
            train=True,
            quick=(levels, key) == (800, "lineage"),
        )
        for levels in (200, 800)
        for key in ("lineage", "settings", "world")
    },
    "a depth in the manifest": resumed(
        forge(manifest=lambda d: d.replace(b"{", b'{"x": ' + json.dumps(deep(800)).encode() + b",", 1)), -1, train=True
    ),
    "a step beyond all": resumed(steps(10**18), -1, train=True),
    "a step of 400 digits": resumed(steps(10**400), 2, "too many", train=True),
    "a step that is true": resumed(steps(True), 5),
    "a step in other digits": resumed(forge(global_step__txt=lambda _: "١".encode()), -1),
    "versions with escape codes": resumed(
        forge(manifest=scalars("versions", {"torch": "\x1b[2J\nerror: x"})), -1, train=True
    ),
    "a model of escape codes": resumed(
        forge(manifest=scalars("base_model", {"identity": "\x1b[2J", "revision": ["x"]})), -1, train=True
    ),
    "a world of escape codes": resumed(forge(state__json=scalars("world", {"\x1b[2J": "\x1b[2J\nerror: x"})), 5),
    "another world": resumed(forge(state__json=scalars("world.seed", 8)), 5, "seed"),
}

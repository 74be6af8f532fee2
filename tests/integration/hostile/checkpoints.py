"""Checkpoints from strangers: damaged, forged with hashes that agree, and with other things beside them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from engine.core.canonical_json import canonical_json
from engine.results.checkpoint import spelled
from tests.integration.hostile.case import Case, Cases, Place
from tests.integration.hostile.models import PICKLE, TEN_GB, claiming

FILES = (
    "pytorch_lora_weights.safetensors",
    "lora_webui.safetensors",
    "state.safetensors",
    "state.json",
    "history.jsonl",
    "global_step.txt",
    "manifest.json",
    "without-0.png",
)
STATE = "state.safetensors"


def resumed(damage: Callable[[Path], None], code: int, *words: str, train: bool = False, **options: Any) -> Case:
    """A copy of a good checkpoint with something done to it."""

    def make(place: Place) -> Mapping[str, object]:
        folder = place.inputs / "checkpoint"
        shutil.copytree(place.checkpoint, folder)
        damage(folder)
        return {"flags": ["--checkpoint", str(folder)]}

    return Case(make=make, code=code, words=words, train=train, **options)


def flip(name: str, where: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(len(data) * where)] ^= 1
        (folder / name).write_bytes(data)

    return damage


def forge(**contents: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Files changed, and the manifest's hashes and digest made to agree. `__` in a name stands for `.`."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for key, change in contents.items():
            name = key.replace("__", ".")
            if name == "manifest":
                manifest = json.loads(change(json.dumps(manifest).encode()))
                continue
            data = change((folder / name).read_bytes() if (folder / name).exists() else b"")
            (folder / name).write_bytes(data)
            manifest["files"][name] = hashlib.sha256(data).hexdigest()
        seal(folder, manifest)

    return damage


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    body = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    (folder / "manifest.json").write_bytes(spelled("manifest.json", body | {"digest": digest}))


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        loaded = {name: tensor.clone() for name, tensor in load(data).items()}
        change(loaded)
        return save(loaded)

    return edit


def first(prefix: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[bytes], bytes]:
    """One tensor of a group changed."""

    def edit(loaded: dict[str, torch.Tensor]) -> None:
        name = next(key for key in loaded if key.startswith(prefix))
        loaded[name] = change(loaded[name])

    return tensors(edit)


def scalars(path: str, value: Any) -> Callable[[bytes], bytes]:
    """A value in `state.json` or the manifest, at a dotted path."""

    def edit(data: bytes) -> bytes:
        content = json.loads(data)
        *parents, last = path.split(".")
        inner = content
        for key in parents:
            inner = inner[key]
        inner[last] = value
        return canonical_json(content)

    return edit


def listing(name: str) -> Callable[[Path], None]:
    """A manifest that lists a file elsewhere, with its right hash."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["files"][name] = hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()
        seal(folder, manifest)

    return damage


def step_lora(name: str, *, linked: bool = False) -> Callable[[Path], None]:
    """A LoRA of an earlier step, with its right hash; in a folder of the checkpoint's own, or in one that is a link."""

    def damage(folder: Path) -> None:
        steps = folder / "steps"
        if linked:
            (folder.parent / "elsewhere").mkdir()
            steps.symlink_to(folder.parent / "elsewhere")
        else:
            steps.mkdir()
        shutil.copy(folder / FILES[0], folder / name)
        listing(name)(folder)

    return damage


def linked(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return damage


def piped(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def foreign(folder: Path) -> None:
    """What accelerate and others would load."""
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "scaler.pt", "pytorch_lora_weights.bin"):
        (folder / name).write_bytes(PICKLE)
    (folder / "extra").mkdir()
    (folder / "loop").symlink_to(".")


def only_lora(data: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A warm start from a LoRA alone."""

    def damage(folder: Path) -> None:
        lora = (folder / FILES[0]).read_bytes()
        for path in folder.iterdir():
            path.unlink()
        (folder / FILES[0]).write_bytes(data(lora))

    return damage


def rename(loaded: dict[str, torch.Tensor]) -> None:
    """The same tensors under names of layers that no model has."""
    for name in list(loaded):
        loaded[f"{name}.evil"] = loaded.pop(name)


def without(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    del manifest["files"][name]
    return manifest


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


NAN = float("nan")
CASES: Cases = {
    **{
        f"a bit of {name} at {where:.0%}": resumed(
            flip(name, where), 5, quick=(name, where) in {(STATE, 0.5), ("manifest.json", 0.9)}
        )
        for name in FILES
        for where in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999)
        if name != "global_step.txt" or where in (0.0, 0.999)
    },
    **{f"no {name}": resumed(lambda f, name=name: (f / name).unlink(), 5) for name in FILES},
    **{
        f"half of {name}": resumed(lambda f, name=name: (f / name).write_bytes(cut((f / name).read_bytes())), 5)
        for name in FILES
    },
    **{
        f"{name} is a link": resumed(linked(name), 5, "plain file" if name != "manifest.json" else "manifest")
        for name in FILES
    },
    **{f"{name} is a pipe": resumed(piped(name), 5) for name in (STATE, "manifest.json")},
    "foreign pickles beside": resumed(foreign, 0, train=True, quick=True),
    "a manifest that lists a file elsewhere": resumed(listing("../../secret.png"), 5, "plain file", quick=True),
    "a manifest that lists an absolute path": resumed(listing("/etc/hostname"), 5, "plain file"),
    "a manifest without a file": resumed(
        forge(manifest=lambda data: json.dumps(without(json.loads(data), STATE)).encode()), 5, "manifest"
    ),
    "a manifest with another step": resumed(forge(manifest=scalars("global_step", 2)), 5, "contradicts"),
    "a manifest of lists": resumed(lambda f: (f / "manifest.json").write_bytes(b"[" * 100_000), 5, "manifest"),
    "a manifest of a terabyte": resumed(lambda f: os.truncate(f / "manifest.json", 1 << 40), 5, "manifest"),
    "a state of a terabyte": resumed(lambda f: os.truncate(f / STATE, 1 << 40), 5, quick=True),
    "a history of a terabyte": resumed(lambda f: os.truncate(f / "history.jsonl", 1 << 40), 5),
    "a LoRA of a terabyte": resumed(lambda f: [only_lora(bytes)(f), os.truncate(f / FILES[0], 1 << 40)], 5, train=True),
    "forged: a tensor of another shape": resumed(
        forge(state__safetensors=first("adapter", lambda t: t[:1].clone())), 5, train=True, quick=True
    ),
    "forged: all tensors of another shape": resumed(
        forge(state__safetensors=tensors(lambda all_: all_.update({k: torch.zeros(3, 3) for k in all_}))), 5, train=True
    ),
    "forged: half precision": resumed(forge(state__safetensors=first("exp_avg.", lambda t: t.half())), 5, train=True),
    "forged: NaN": resumed(forge(state__safetensors=first("adapter", lambda t: t * NAN)), 5, "finite", train=True),
    "forged: a negative square": resumed(
        forge(state__safetensors=first("exp_avg_sq", lambda t: t - 1)), 5, "negative", train=True
    ),
    "forged: a tensor short": resumed(
        forge(state__safetensors=tensors(lambda all_: all_.pop(next(iter(all_))))), 5, train=True
    ),
    "forged: a tensor too many": resumed(
        forge(state__safetensors=tensors(lambda all_: all_.update({"evil.x": torch.zeros(1)}))), 5, train=True
    ),
    "forged: tensors of layers that are not there": resumed(forge(state__safetensors=tensors(rename)), 5, train=True),
    "forged: nothing in the state": resumed(forge(state__safetensors=lambda _: save({})), 5, train=True),
    "forged: 10 GB claimed": resumed(forge(state__safetensors=lambda _: claiming(TEN_GB)), 5, train=True, quick=True),
    "forged: a header of 2**63 bytes": resumed(
        forge(state__safetensors=lambda _: claiming(b"{}", 2**63 - 1)), 5, train=True
    ),
    "forged: a pickle": resumed(forge(state__safetensors=lambda _: PICKLE), 5, train=True),
    "forged: a shape whose product overflows": resumed(
        forge(
            state__safetensors=lambda _: claiming({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}})
        ),
        5,
        train=True,
    ),
    **{
        f"forged: {key} is {value!r}": resumed(forge(state__json=scalars(key, value)), 5, train=True)
        for key, value in (
            ("format", 2),
            ("format", None),
            ("state", []),
            ("state.global_step", "1"),
            ("state.global_step", 2),
            ("state.global_step", -1),
            ("state.global_step", 1.0),
            ("state.optimizer_step", -1),
            ("state.optimizer_step", 10**30),
            ("state.optimizer_step", None),
            ("state.loss_scale", {"scale": 1.0, "growth_tracker": 0}),
            ("state.loss_scale", "x"),
            ("world", []),
            ("world.rank", 4),
            ("world.rank", "2"),
            ("world.target_modules", None),
            ("world.dataset", "0" * 64),
            ("settings", "x"),
            ("lineage", {}),
            ("lineage", [1]),
            ("baseline", 5),
        )
    },
    "forged: a lineage of strangers": resumed(
        forge(state__json=scalars("lineage", [{"</script>": [None, {"a": 1}]}])), -1, train=True
    ),
    "forged: settings of strangers": resumed(
        forge(state__json=scalars("settings", {"train_args": {"learning_rate": {"x": "\x1b[2J"}}})), -1, train=True
    ),
    "forged: a baseline of strangers": resumed(
        forge(state__json=scalars("baseline", [{"file": "../../evil.png"}])), 0, train=True
    ),
    "forged: a picture that is a script": resumed(forge(without_0__png=lambda _: b"<script>"), -1, train=True),
    "forged: other white space in state.json": resumed(
        forge(state__json=lambda d: d.replace(b":", b": ", 1)), 5, "not written as"
    ),
    "forged: a key twice in state.json": resumed(
        forge(state__json=lambda d: d.replace(b"{", b'{"world":{"base_model":"LIES"},', 1)), 5, "not written as"
    ),
    "forged: a null more in state.json": resumed(forge(state__json=scalars("world.more", None)), 5, "null"),
    "forged: other white space in history.jsonl": resumed(
        forge(history__jsonl=lambda d: d.replace(b", ", b",", 1)), 5, "not written as", train=True, quick=True
    ),
    "forged: other white space in manifest.json": resumed(
        lambda f: (f / "manifest.json").write_bytes((f / "manifest.json").read_bytes() + b" "), 5, "not written as"
    ),
    "forged: no JSON in state.json": resumed(forge(state__json=lambda _: b"{"), 5),
    "forged: deep JSON in state.json": resumed(forge(state__json=lambda _: b"[" * 200_000), 5),
    "forged: no step": resumed(forge(global_step__txt=lambda _: b"x"), 5),
    "forged: digits without end": resumed(forge(global_step__txt=lambda _: b"1" * 10_000), 5),
    "forged: history in words": resumed(forge(history__jsonl=lambda _: b"words\n"), 5, train=True),
    "forged: history of NaN": resumed(forge(history__jsonl=lambda _: b"[1, NaN, 0, 0]\n"), 5, train=True),
    "forged: history of other steps": resumed(
        forge(history__jsonl=lambda d: d.replace(b"[1,", b"[7,")), -1, train=True
    ),
    "forged: no history": resumed(forge(history__jsonl=lambda _: b""), -1, train=True),
    **{
        f"forged: held-out losses {what}": resumed(forge(heldout__jsonl=lambda _, d=data: d), 5, "held-out", train=True)
        for what, data in {
            "in words": b"words\n",
            "of NaN": b'{"step": 1, "loss": NaN, "strata": [], "images": 1, "curve": "0123456789abcdef"}\n',
            "of another kind": b"[1, 2]\n",
            "without end": b"[" * 200_000,
            "a hundred thousand times": b"{}\n" * 100_001,
        }.items()
    },
    "forged: a LoRA of a step to come": resumed(step_lora("steps/000009.safetensors"), 5, "steps/000009", quick=True),
    "forged: a LoRA of a step by another name": resumed(step_lora("steps/9.safetensors"), 5, "plain file"),
    "forged: LoRAs of steps behind a link": resumed(
        step_lora("steps/000001.safetensors", linked=True), 5, "plain file", quick=True
    ),
    "forged: a LoRA of a step out of the folder": resumed(step_lora("steps/../../x.safetensors"), 5, "plain file"),
    "a LoRA that is no LoRA": resumed(only_lora(lambda _: save({"x": torch.zeros(1)})), 5, train=True),
    "a LoRA of other shapes": resumed(
        only_lora(tensors(lambda all_: all_.update({k: torch.zeros(1, 1) for k in all_}))), 5, train=True
    ),
    "a LoRA of NaN": resumed(only_lora(first("unet", lambda t: t * NAN)), 5, train=True),
    "a LoRA that is a pickle": resumed(only_lora(lambda _: PICKLE), 5, train=True, quick=True),
    "a LoRA of 10 GB": resumed(only_lora(lambda _: claiming(TEN_GB)), 5, train=True),
    "half a LoRA": resumed(only_lora(cut), 5, train=True),
    "a folder that is a file": Case(make=lambda place: {"checkpoint": str(place.secret)}, code=5),
    "a folder that is not there": Case(make=lambda place: {"checkpoint": "/nowhere/\u202e"}, code=5),
    "a folder with a NUL": Case(make=lambda place: {"checkpoint": "a\0b"}, code=2),
}

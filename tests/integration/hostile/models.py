"""Base models from strangers: pickles, parts missing, of wrong shapes or not numbers, configurations that lie."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.integration.hostile.case import Case, Cases, Place

UNET = "unet/diffusion_pytorch_model.safetensors"
PICKLE = b"cos\nsystem\n(S'touch owned'\ntR."
"""Runs a command when it is unpickled."""


def broken(damage: Callable[[Path], None], code: int, *words: str, train: bool = False, **options: Any) -> Case:
    """A copy of the tiny model with something wrong."""

    def make(place: Place) -> Mapping[str, object]:
        folder = place.inputs / "model"
        shutil.copytree(place.model, folder)
        damage(folder)
        return {"model.name": str(folder)}

    return Case(make=make, code=code, words=words, train=train, **options)


def replaced(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)


def removed(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return damage


def pickled(name: str) -> Callable[[Path], None]:
    """A pickle in place of the weights."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).with_suffix(".bin").write_bytes(PICKLE)

    return damage


def beside(folder: Path) -> None:
    """Pickles beside the weights, under all names that loaders look for."""
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
    ):
        (folder / name).write_bytes(PICKLE)
    (folder / "optimizer.pt").write_bytes(PICKLE)


def code_beside(folder: Path) -> None:
    """Code that `trust_remote_code` would run."""
    (folder / "pipeline.py").write_text("open('owned', 'w')")
    (folder / "unet" / "unet.py").write_text("open('owned', 'w')")
    edit("unet/config.json", auto_map={"AutoModel": "unet.Unet"})(folder)


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    """Values of a configuration changed; None takes the key away."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes()) | values
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return damage


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        loaded = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        change(loaded)
        save_file(loaded, folder / name, metadata={"format": "pt"})

    return damage


def fill(key: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda loaded: loaded[key].fill_(value)


def claiming(data: Mapping[str, Any] | bytes, length: int | None = None) -> bytes:
    """A safetensors file whose header says this."""
    header = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header


def huge(name: str) -> Callable[[Path], None]:
    """A file behind a link that leads to a device without end."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return damage


def sparse(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, 1 << 40)


def pipe(name: str) -> Callable[[Path], None]:
    """A named pipe, into which nobody writes."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


NAN = float("nan")
SCHEDULER = "scheduler/scheduler_config.json"
TEN_GB = {"conv_in.weight": {"dtype": "F32", "shape": [50_000, 50_000], "data_offsets": [0, 10**10]}}
CASES: Cases = {
    "pickled weights": broken(pickled(UNET), 4, "unet", "safetensors", quick=True),
    "pickles beside": broken(beside, 0, train=True, quick=True),
    "code beside": broken(code_beside, 0, train=True),
    "a pickle by the right name": broken(replaced(UNET, PICKLE), 4, "unet", train=True),
    **{
        f"no {part}": broken(removed(part), 4, part.split("/")[0])
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json", UNET)
    },
    "no configuration": broken(removed("unet/config.json"), 4, "unet"),
    "no vocabulary": broken(removed("tokenizer/tokenizer.json"), 4, "tokenizer", train=True),
    "an index that is a list": broken(replaced("model_index.json", b"[]"), 4, "model_index.json"),
    "an index that is no JSON": broken(replaced("model_index.json", b"\xff{"), 4, "model_index.json"),
    "an index of deep JSON": broken(replaced("model_index.json", b"[" * 200_000), 4, "model_index.json"),
    "an index of a terabyte": broken(sparse("model_index.json"), 4, "model_index.json"),
    "a configuration of a terabyte": broken(sparse("unet/config.json"), 4, "config.json"),
    "a configuration without end": broken(huge("unet/config.json"), 4, "config.json"),
    "a configuration that is a pipe": broken(pipe("unet/config.json"), 4, "config.json"),
    "another family": broken(edit("model_index.json", _class_name="FluxPipeline"), 4, "FluxPipeline"),
    "a class that is a path": broken(edit("model_index.json", _class_name="../../os"), 4),
    "a scheduler that is none": broken(
        edit("scheduler/scheduler_config.json", _class_name="UNet2DModel"), 4, train=True
    ),
    "no timesteps": broken(edit("scheduler/scheduler_config.json", num_train_timesteps=0), 4, train=True),
    "timesteps in words": broken(
        edit("scheduler/scheduler_config.json", num_train_timesteps="many"), 4, "num_train_timesteps", quick=True
    ),
    "a billion timesteps": broken(
        edit("scheduler/scheduler_config.json", num_train_timesteps=10**10), 4, train=True, memory=2 << 30
    ),
    "betas that are no numbers": broken(edit("scheduler/scheduler_config.json", beta_end="x"), 4, train=True),
    "betas beyond one": broken(edit("scheduler/scheduler_config.json", beta_end=3.0), 4, train=True),
    "a wider UNet": broken(edit("unet/config.json", block_out_channels=[64, 64]), 4, "unet", train=True),
    "channels that are words": broken(edit("unet/config.json", block_out_channels=["a"]), 4, "unet", train=True),
    "a UNet of a terabyte": broken(
        edit("unet/config.json", block_out_channels=[2**18, 2**18]), 4, "unet", train=True, memory=2 << 30
    ),
    "an inpainting model": broken(edit("unet/config.json", in_channels=9), 4, "channels"),
    "a text encoder of another width": broken(edit("text_encoder/config.json", hidden_size=48), 4, "width"),
    "a tensor short": broken(tensors(UNET, lambda t: t.pop("conv_in.weight")), 4, "unet", "missing", train=True),
    "a tensor of another shape": broken(
        tensors(UNET, lambda t: t.update({"conv_in.weight": torch.zeros(1)})), 4, "unet", train=True, quick=True
    ),
    "a tensor of another type": broken(
        tensors(UNET, lambda t: t.update({"conv_in.weight": t["conv_in.weight"].to(torch.int8)})), 0, train=True
    ),
    "NaN in the UNet": broken(tensors(UNET, fill("conv_in.weight", float("nan"))), 4, "unet", train=True, quick=True),
    "infinity in the VAE": broken(
        tensors("vae/diffusion_pytorch_model.safetensors", fill("encoder.conv_in.weight", float("inf"))),
        4,
        "vae",
        train=True,
    ),
    "NaN in the text encoder": broken(
        tensors("text_encoder/model.safetensors", lambda t: next(iter(t.values())).fill_(float("nan"))),
        4,
        "text_encoder",
        train=True,
    ),
    "half the weights": broken(lambda folder: os.truncate(folder / UNET, 5000), 4, "unet", train=True),
    "no weights": broken(replaced(UNET, b""), 4, "unet", train=True),
    "10 GB claimed": broken(replaced(UNET, claiming(TEN_GB)), 4, "unet", train=True, quick=True),
    "a header of 2**63 bytes": broken(replaced(UNET, claiming(b"{}", 2**63)), 4, "unet", train=True),
    "a header that is a list": broken(replaced(UNET, claiming(b"[]")), 4, "unet", train=True),
    "tensors that overlap": broken(
        replaced(
            UNET,
            claiming({key: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for key in "ab"}) + bytes(8),
        ),
        4,
        "unet",
        train=True,
    ),
    "weights that never end": broken(huge(UNET), 4, "unet", train=True, seconds=60),
    **{
        f"{part} of a billion {key}": broken(
            edit(f"{part}/config.json", **{key: value}), 4, key, quick=key == "layers_per_block"
        )
        for part, key, value in (
            ("unet", "layers_per_block", 10**9),
            ("unet", "transformer_layers_per_block", [[10**9]]),
            ("unet", "down_block_types", ["DownBlock2D"] * 10**6),
            ("vae", "layers_per_block", 10**9),
            ("text_encoder", "num_hidden_layers", 10**9),
            ("text_encoder", "max_position_embeddings", 10**9),
            ("text_encoder", "vocab_size", 10**12),
        )
    },
    **{
        f"a scale of {value!r}": broken(edit("vae/config.json", scaling_factor=value), 4, "scaling_factor")
        for value in (0, -1.0, "x", [1], NAN, True)
    },
    "an end that is a word": broken(edit("text_encoder/config.json", eos_token_id="x"), 4, "eos_token_id"),
    "steps behind the last": broken(edit(SCHEDULER, steps_offset=10**6), 4, "steps_offset", quick=True),
    "steps that are a word": broken(edit(SCHEDULER, steps_offset="x"), 4, "steps_offset"),
    "rows without end": broken(edit("tokenizer/tokenizer_config.json", model_max_length=10**30), 4, "rows", train=True),
    "rows of a million": broken(edit("tokenizer/tokenizer_config.json", model_max_length=10**6), 4, "rows", train=True),
    "rows of nothing": broken(edit("tokenizer/tokenizer_config.json", model_max_length=0), 4, "rows", train=True),
    "a tokenizer of another class": broken(
        edit(
            "tokenizer/tokenizer_config.json", tokenizer_class="../evil", auto_map={"AutoTokenizer": ["evil.E", None]}
        ),
        0,
        train=True,
    ),
    "an index of other classes": broken(
        edit("model_index.json", unet=["os", "system"], vae=["evil", "Evil"]), 0, train=True
    ),
    "a class of another library": broken(
        edit("unet/config.json", _class_name="FluxTransformer2DModel"), -1, train=True
    ),
    "a folder that is a file": Case(make=lambda place: {"model.name": str(place.secret)}, code=4),
    "a path out of the Hub": Case(make=lambda place: {"model.name": "../../etc/passwd"}, code=4),
    "a Hub name with a NUL": Case(make=lambda place: {"model.name": "a\0b"}, code=2),
    "a name of a megabyte": Case(make=lambda place: {"model.name": "a/" * 500_000}, code=4),
}

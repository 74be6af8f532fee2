"""The files of a whole pipeline in Diffusers' layout, for `DiffusionPipeline.from_pretrained(folder)`."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from transformers import CLIPTokenizer

from engine.core.files.built_beside import Content, Streamed
from engine.models.components.files import INDEX, is_part, is_weight
from engine.models.components.search import class_name
from engine.models.configs import SCHEDULER_FILE, read_json
from engine.models.export.model import TrainedModel
from engine.models.export.weights import Weights, as_json, index_of, with_dtype
from engine.models.single_file.vocabulary import read_vocabulary
from engine.models.single_file.weights import build_tokenizer
from engine.results import safetensors_file

_SIDE_SUFFIXES: Final = (".json", ".txt", ".model", ".jinja")
_METADATA: Final = {"format": "pt"}
_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
"""Keys of a text encoder's configuration that name the dtype in which transformers loads it by default."""


def files_of(model: TrainedModel, dtype: torch.dtype | None) -> dict[str, Content]:
    """Return the files of the pipeline's folder by name.

    Args:
        model: the model.
        dtype: the dtype of all weights. None keeps the precision of each part; files of frozen parts stay as they are.

    Raises:
        ModelError: the base model's files cannot be read.
    """
    files: dict[str, Content] = {}
    for component in model.base.family.components:
        if not model.base.has(component):
            continue
        if component in model.weights:
            files |= _weights(model, component, dtype)
        elif component == "scheduler":
            files[f"{component}/{SCHEDULER_FILE}"] = _scheduler(model)
        else:
            files |= _without_weights(model, component)
    extra = _others(model)
    files |= extra
    files[INDEX] = as_json(_index(model, files))
    return files


def left_out(model: TrainedModel) -> list[str]:
    """Return the names of the base model's parts that are not exported: they have no safetensors weights on disk."""
    if model.base.single_file is not None:
        return []
    known = {name.partition("/")[0] for name in _others(model)} | set(model.base.family.components)
    index = read_json(model.base.folder / INDEX)
    return sorted(name for name, value in index.items() if is_part(value) and name not in known)


def _weights(model: TrainedModel, component: str, dtype: torch.dtype | None) -> dict[str, Content]:
    stored = model.weights[component]
    weights = with_dtype(stored, dtype)
    stem = "model" if "architectures" in weights.config else "diffusion_pytorch_model"
    files: dict[str, Content] = {f"{component}/config.json": as_json(_config(weights))}
    if weights.files:
        files |= {f"{component}/{plain}": path for plain, path in weights.files.items()}
        index = index_of(weights)
    else:
        shards = safetensors_file.shards(weights.tensors, stem)
        where = {name: file for file, own in shards.items() for name in own}
        size = sum(source.num_bytes for source in weights.tensors.values())
        index = as_json({"metadata": {"total_size": size}, "weight_map": where}) if len(shards) > 1 else None
        for name, own in shards.items():
            num_bytes = sum(source.num_bytes for source in own.values())
            files[f"{component}/{name}"] = Streamed(num_bytes, partial(safetensors_file.pieces, own, _METADATA))
    if index is not None:
        files[f"{component}/{stem}.safetensors.index.json"] = index
    return files


def _config(weights: Weights) -> dict[str, Any]:
    config = {key: value for key, value in weights.config.items() if key != "_name_or_path"}
    if "architectures" in config:
        config |= {key: str(weights.dtype).removeprefix("torch.") for key in _DTYPE_KEYS if key in config}
    return config


def _scheduler(model: TrainedModel) -> Content:
    config = model.scheduler_config()
    return model.base.place("scheduler").folder / SCHEDULER_FILE if config is None else as_json(config)


def _without_weights(model: TrainedModel, component: str) -> dict[str, Content]:
    """Return the files of a tokenizer."""
    where = model.base.place(component)
    if where.single_file is None:
        return _side_files(where.folder, component)
    tokenizer = build_tokenizer(CLIPTokenizer, where.single_file, component)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files: dict[str, Content] = {f"{component}/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
    vocabulary, merges = read_vocabulary()  # in the files that versions of transformers before 5 require
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    files[f"{component}/vocab.json"] = json.dumps(vocabulary, ensure_ascii=False).encode()
    files[f"{component}/merges.txt"] = "\n".join(lines).encode()
    return files


def _side_files(folder: Path, component: str) -> dict[str, Content]:
    """Return the files without weights in a component's folder."""
    found = sorted(path for path in folder.iterdir() if path.suffix in _SIDE_SUFFIXES)
    return {f"{component}/{path.name}": path for path in found}


def _others(model: TrainedModel) -> dict[str, Content]:
    """Return the files of the base model's parts that the family does not know, such as a safety checker."""
    if model.base.single_file is not None:
        return {}
    folder, files = model.base.folder, dict[str, Content]()
    for name, value in read_json(folder / INDEX).items():
        if not is_part(value) or name in model.base.family.components or not (folder / name).is_dir():
            continue
        side = {key: path for key, path in _side_files(folder / name, name).items() if ".index." not in key}
        weights = {f"{name}/{path.name}": path for path in (folder / name).iterdir() if is_weight(path.name, None)}
        # With weights as pickles only, or in shards, whose index would be needed as well, the part is left out.
        if (weights or f"{name}/config.json" not in side) and len(weights) <= 1:
            files |= {**side, **weights}
    return files


def _index(model: TrainedModel, files: Mapping[str, Content]) -> dict[str, Any]:
    """Return the model_index.json. Parts that are not among the files are absent from the pipeline."""
    there = {name.partition("/")[0] for name in files}
    if model.base.single_file is None:
        index = read_json(model.base.folder / INDEX)
        index.pop("_name_or_path", None)
    else:
        index = _built_index(model)
    config = model.scheduler_config()
    if config is not None:
        index["scheduler"] = ["diffusers", config["_class_name"]]
    index |= {name: _entry(model, name) for name in model.base.elsewhere}
    lost = [name for name, value in index.items() if is_part(value) and name not in there]
    index |= {name: [None, None] for name in lost}
    if "safety_checker" in lost:
        index["requires_safety_checker"] = False
    return index


def _entry(model: TrainedModel, component: str) -> list[str]:
    """Return the row of a component from elsewhere: library and class."""
    if component == "scheduler":
        return ["diffusers", str(class_name(model.scheduler_config() or model.base_scheduler))]
    if component in model.weights:
        config = model.config(component)
        return ["transformers" if "architectures" in config else "diffusers", str(class_name(config))]
    config = model.base.place(component).config("tokenizer_config.json")
    return ["transformers", str(config.get("tokenizer_class"))]


def _built_index(model: TrainedModel) -> dict[str, Any]:
    """Return the model_index.json for a base model in one file."""
    pipeline = model.base.family.pipeline
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__}
    for name, parameter in inspect.signature(getattr(diffusers, pipeline)).parameters.items():
        if name in model.weights:
            config = model.weights[name].config
            is_text = "architectures" in config
            kind = config["architectures"][0] if is_text else config["_class_name"]
            index[name] = ["transformers" if is_text else "diffusers", kind]
        elif name in model.base.family.components:
            index[name] = ["transformers", "CLIPTokenizer"]  # the scheduler's row is filled in later
        elif name in ("safety_checker", "feature_extractor", "image_encoder"):
            index[name] = [None, None]
        elif isinstance(parameter.default, bool):
            index[name] = parameter.default if name != "requires_safety_checker" else False
    return index

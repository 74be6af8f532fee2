"""The files of a pipeline's folder: which are the base model's own, and what its index says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from engine.core.files.built_beside import Streamed, write_folder
from engine.models.components import locating
from engine.models.export import diffusers_folder, weights
from engine.models.export.diffusers_folder import files_of
from engine.models.export.model import TrainedModel
from engine.models.export.weights import Weights, of_base
from engine.results import safetensors_file
from engine.results.safetensors_file import source_of
from engine.task.task import Model
from tests.support import tiny


def model_of(folder, tmp_path, *, variant=None, prediction_type="epsilon", zero_terminal_snr=False):
    """The base model of a folder, with another first convolution."""
    base = locating.locate(
        Model(name=str(folder), variant=variant),
        pinned=None,
        weights=True,
        report=lambda line: None,
        cache_dir=tmp_path,
    )
    stored = {name: of_base(base, name) for name in base.family.weighted}
    own = stored["unet"]
    conv = own.tensors["conv_in.weight"].read() + 1
    stored["unet"] = Weights(config=own.config, tensors={**own.tensors, "conv_in.weight": source_of(conv)})
    return TrainedModel(
        base=base,
        weights=stored,
        trained=frozenset({"unet"}),
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        resolution=64,
        title="t",
    )


def written(model, folder, dtype=None):
    write_folder(folder, files_of(model, dtype), overwrite=False, written=lambda count: None)
    return DiffusionPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("sd") / "m", variant="fp16")


def test_frozen_parts_are_the_base_models_files(sd, tmp_path):
    files = files_of(model_of(sd, tmp_path), None)
    assert isinstance(files["unet/diffusion_pytorch_model.safetensors"], Streamed)
    for name in (
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ):
        assert files[name] == sd / name
    assert files["scheduler/scheduler_config.json"] == sd / "scheduler" / "scheduler_config.json"


def test_files_of_a_variant_get_plain_names(sd, tmp_path):
    model = model_of(sd, tmp_path, variant="fp16")
    pipe = written(model, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*fp16*"))
    assert (tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors").samefile(
        sd / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    )
    expected = model.weights["unet"].tensors["conv_in.weight"].read()
    assert torch.equal(pipe.unet.conv_in.weight, expected.float())


def test_a_large_part_is_written_in_shards(sd, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "MAX_SHARD_BYTES", 200_000)
    model = model_of(sd, tmp_path)
    pipe = written(model, tmp_path / "out")
    assert len(list((tmp_path / "out" / "unet").glob("*-of-*.safetensors"))) > 1
    for name, source in model.weights["unet"].tensors.items():
        assert torch.equal(pipe.unet.state_dict()[name], source.read())
    # Read as a base model again, these shards are linked, with an index.
    again = model_of(tmp_path / "out", tmp_path)
    files = {f"unet/{name}": path for name, path in of_base(again.base, "unet").files.items()}
    assert len(files) > 1
    index = json.loads(weights.index_of(of_base(again.base, "unet")))
    assert {f"unet/{name}" for name in index["weight_map"].values()} == files.keys()


def test_another_prediction_type_is_in_the_scheduler(sd, tmp_path):
    pipe = written(model_of(sd, tmp_path, prediction_type="v_prediction", zero_terminal_snr=True), tmp_path / "out")
    config = pipe.scheduler.config
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"  # the base model's cannot begin with pure noise
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


def test_a_part_that_only_a_pickle_holds_is_left_out(tmp_path):
    folder = tiny.build_sd(tmp_path / "m")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "X"], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index | {"requires_safety_checker": True}))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"x")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    model = model_of(folder, tmp_path)
    files = files_of(model, None)
    assert diffusers_folder.left_out(model) == ["safety_checker"]
    assert files["feature_extractor/preprocessor_config.json"] == folder / "feature_extractor/preprocessor_config.json"
    found = json.loads(files["model_index.json"])
    assert found["safety_checker"] == [None, None] and found["requires_safety_checker"] is False
    assert not any(Path(name).suffix == ".bin" for name in files)

"""A whole model in one file: marks, metadata, and what such a file cannot say."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from engine.core.errors import ModelError
from engine.models import registry, single_file
from engine.models.export.model import TrainedModel
from engine.models.export.weights import Weights
from engine.models.export.whole_file import file_of
from engine.results.safetensors_file import source_of
from tests.support import single_files

ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v1",  # the published model is told by its width, which a small one does not have
    "xl": "stable-diffusion-xl-v1-base",
}
LAYOUTS = [layout for layout, pipeline in single_files.PIPELINES.items() if pipeline in registry.FAMILIES]


def model_of(layout, *, prediction_type="epsilon", zero_terminal_snr=False, changes=None, dtype=torch.float32):
    """A small model in memory with random weights; `changes` are settings of its UNet."""
    configs = single_files.small_configs(layout)
    configs["unet"] |= changes or {}
    modules = {
        name: single_files.build(name, config) for name, config in configs.items() if name in single_files.CLASSES
    }
    weights = {
        name: Weights(
            config=configs[name],
            tensors={key: source_of(tensor.detach().to(dtype)) for key, tensor in module.named_parameters()},
        )
        for name, module in modules.items()
    }
    base = SimpleNamespace(
        single_file=None,
        family=registry.FAMILIES[single_files.PIPELINES[layout]],
        config=lambda component, name="": configs[component],
    )
    return TrainedModel(
        base=base,
        weights=weights,
        trained=frozenset({"unet"}),
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        resolution=640,
        title="a model, trained for 3 steps",
    )


def written(model, path, dtype=None):
    path.write_bytes(b"".join(map(bytes, file_of(model, dtype).pieces())))
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.pop("__metadata__"), header


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metadata_and_names_are_those_of_files_that_are_offered(layout, tmp_path):
    metadata, header = written(model_of(layout), tmp_path / "m.safetensors")
    own = {key.removeprefix("modelspec."): value for key, value in metadata.items()}
    assert own == {
        "format": "pt",
        "sai_model_spec": "1.0.1",
        "architecture": ARCHITECTURES[layout],
        "implementation": "https://github.com/Stability-AI/generative-models",
        "prediction_type": "epsilon",
        "resolution": "640x640",
        "title": "a model, trained for 3 steps",
    }
    state = single_files.original_state(single_files.build_modules(layout), layout)
    buffers = {key for key in state if key.endswith("position_ids")}
    assert header.keys() == state.keys() - buffers
    assert all(header[key]["shape"] == list(state[key].shape) for key in header)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_velocity_prediction_is_marked(zero_terminal_snr, tmp_path):
    path = tmp_path / "m.safetensors"
    model = model_of("xl", prediction_type="v_prediction", zero_terminal_snr=zero_terminal_snr)
    _, header = written(model, path, torch.float16)
    assert ("v_pred" in header, "ztsnr" in header) == (True, zero_terminal_snr)
    assert {entry["dtype"] for entry in header.values()} == {"F16"}
    scheduler = single_file.inspect(path, "m", lambda line: None).configs["scheduler"]
    assert scheduler["prediction_type"] == "v_prediction"
    assert bool(scheduler.get("rescale_betas_zero_snr")) == zero_terminal_snr


@pytest.mark.parametrize(
    "layout, changes, words",
    [
        ("sd1", {"attention_head_dim": 4}, "unet: attention_head_dim is 4, and 8 would be read"),
        ("sd1", {"norm_num_groups": 16}, "unet: norm_num_groups is 16, and 32 would be read"),
        ("xl", {"act_fn": "gelu"}, "unet: act_fn is 'gelu', and 'silu' would be read"),
    ],
)
def test_settings_that_a_file_cannot_say_are_refused(layout, changes, words):
    with pytest.raises(ModelError, match=words) as caught:
        file_of(model_of(layout, changes=changes), None)
    assert str(caught.value).endswith("use --format diffusers")


def test_a_tensor_without_a_name_in_such_files_is_refused():
    model = model_of("sd1")
    model.weights["unet"].tensors["time_embedding.cond_proj.weight"] = source_of(torch.zeros(2, 2))
    with pytest.raises(ModelError, match=r"time_embedding\.cond_proj\.weight has no name in a single file"):
        file_of(model, None)

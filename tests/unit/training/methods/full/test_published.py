"""A whole model's published files are those that were verified."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from engine.core.errors import CheckpointError
from engine.models.export.weights import of_folder
from engine.models.families.sd.spec import SPEC
from engine.training.methods.full.published import load

FILES = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / FILES[0]).write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    save_file({"w": torch.ones(2, 3)}, tmp_path / FILES[1])
    return tmp_path


def weights(folder):
    found = load(folder, SimpleNamespace(manifest={"files": dict.fromkeys(FILES, "")}))
    return found.weights("unet", of_folder(folder / "unet", None, CheckpointError), SPEC, 1.0)


def test_the_files_of_the_manifest_are_read(folder):
    assert torch.equal(weights(folder).tensors["w"].read(), torch.ones(2, 3))


def test_another_file_beside_them_is_refused(folder):
    """Its tensors would take the place of those that were verified."""
    save_file({"w": torch.zeros(2, 3)}, folder / "unet" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no file of the checkpoint: remove it"):
        weights(folder)

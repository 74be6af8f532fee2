"""Diffusers' pipelines, built from the parts that are loaded."""

import json

import torch

from tests.support.tiny import BUILDERS
from tests.unit.models.families.test_every_family import load


def test_a_half_precision_model_is_loaded_in_full_precision(name, tmp_path):
    """Its text encoders' configurations say float16."""
    folder = BUILDERS[name](tmp_path / "model", variant="fp16", only_variant=True)
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    for module in load(folder, variant="fp16").parts.values():
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_the_pipeline_is_the_models_and_consists_of_the_loaded_parts(full, name):
    pipeline = full.pipeline
    assert type(pipeline).__name__ == name
    found = {part: module for part, module in pipeline.components.items() if isinstance(module, torch.nn.Module)}
    assert found == full.parts


def test_the_scheduler_predicts_what_the_training_predicts(folder):
    assert load(folder, prediction_type="v_prediction").pipeline.scheduler.config.prediction_type == "v_prediction"

"""Names in single files, against the mapping that the tests have of their own, for the published models' sizes."""

from __future__ import annotations

import pytest
import torch

from engine.models.single_file.layouts import LAYOUTS
from engine.models.single_file.original_names import place, plain_name
from tests.support import single_files

NUM_TENSORS = {"sd1": 686 + 248 + 196, "sd2": 686 + 248 + 372, "xl": 1680 + 248 + 196 + 517}
"""Weights of the published models in Diffusers' layout: UNet, autoencoder, text encoders."""


@pytest.fixture(scope="module", params=single_files.PIPELINES)
def published(request):
    """A published model's layout, configurations and modules without memory."""
    configs = single_files.skeleton(request.param)
    with torch.device("meta"):
        modules = {name: single_files.build(name, configs[name]) for name in configs if name in single_files.CLASSES}
    layout = next(known for known in LAYOUTS if known.title == single_files.TITLES[request.param])
    return request.param, layout, configs, modules


def places(layout, configs, modules):
    """Every weight's place: name in the file -> (component, name, place)."""
    found = {}
    for component, part in layout.parts.items():
        for own, tensor in modules[component].named_parameters():
            where = place(part.kind, plain_name(part.kind, own), configs[component])
            found.setdefault(part.prefix + where.name, []).append((tuple(tensor.shape), where))
    return found


@pytest.mark.long
def test_every_weight_has_the_name_and_shape_that_files_have(published):
    name, layout, configs, modules = published
    found = places(layout, configs, modules)
    assert sum(map(len, found.values())) == NUM_TENSORS[name]
    state = single_files.original_state(modules, name)
    last = f"transformer.resblocks.{configs['text_encoder']['num_hidden_layers']}."
    unused = {key for key in state if key.endswith(("position_ids", "logit_scale")) or (name == "sd2" and last in key)}
    unused |= {"cond_stage_model.model.text_projection"} if name == "sd2" else set()
    assert found.keys() == state.keys() - unused
    for key, rows in found.items():
        (shape, where), count = rows[0], len(rows)
        assert sorted(row[1].third or 0 for row in rows) == list(range(count))
        stored = tuple(state[key].shape)
        if where.is_transposed:
            assert stored == shape[::-1]
        elif where.is_convolution:
            assert stored == (*shape, 1, 1)
        else:
            assert stored == (shape[0] * count, *shape[1:])


@pytest.mark.parametrize(
    "kind, name, plain",
    [
        ("vae", "encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight"),
        ("vae", "decoder.mid_block.attentions.0.proj_attn.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
        ("clip", "encoder.layers.0.mlp.fc1.bias", "text_model.encoder.layers.0.mlp.fc1.bias"),
        ("open_clip", "text_projection.weight", "text_projection.weight"),
        ("unet", "mid_block.attentions.0.proj_in.weight", "mid_block.attentions.0.proj_in.weight"),
    ],
)
def test_older_and_newer_spellings(kind, name, plain):
    assert plain_name(kind, name) == plain


@pytest.mark.parametrize(
    "kind, name", [("unet", "conv_in.lora.weight"), ("vae", "encoder.x.weight"), ("open_clip", "a.b")]
)
def test_an_unknown_tensor_has_no_place(kind, name):
    with pytest.raises((KeyError, ValueError)):
        place(kind, name, single_files.skeleton("sd1").get(kind, {}))

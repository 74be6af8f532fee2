"""What a file holds, by the names and shapes of its tensors."""

import functools
import re

import pytest
import torch

from engine.core.errors import ModelError
from engine.models import single_file
from engine.models.single_file.header import Header, Tensor
from engine.models.single_file.layouts import LAYOUTS, detect, original_name, said_prediction
from tests.support import single_files

CONV = "model.diffusion_model.input_blocks.0.0.weight"
SD1 = {
    CONV: (320, 4, 3, 3),
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
}
XL = {
    CONV: (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (640, 640),
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
}


def header(shapes, dtype="F16", **metadata):
    return Header({name: Tensor(dtype, tuple(shape)) for name, shape in shapes.items()}, metadata)


def without(shapes, *starts):
    return {name: shape for name, shape in shapes.items() if not name.startswith(starts)}


def refusal(call):
    with pytest.raises(ModelError) as caught:
        call()
    assert caught.value.code == 4 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module", params=["sd1", "sd2", "xl"])
def written(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / f"{request.param}.safetensors"
    return request.param, single_files.write(path, request.param)


def test_the_layout_and_its_sizes(written):
    layout, path = written
    lines = []
    found = single_file.inspect(path, "m", lines.append)
    assert found.layout.title == single_files.TITLES[layout] and found.path == path
    expected = single_files.small_configs(layout)
    for component, config in expected.items():
        # Neither of these shows in shapes, nor does anything depend on it: the native size, and the width of a
        # projection that this class does without.
        unseen = {"sample_size", *({"projection_dim"} if component == "text_encoder" else ())}
        own = {key: value for key, value in found.configs[component].items() if key not in unseen}
        assert own == {key: value for key, value in config.items() if key not in unseen}
    assert len(lines) == 1 and f"a single file of {found.layout.title}" in lines[0]


@pytest.mark.parametrize(
    "layout, counts",
    [
        ("sd1", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        ("sd2", {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}),
        (
            "xl",
            {
                "unet": 2_567_463_684,
                "vae": 83_653_863,
                "text_encoder": 123_060_480,
                "text_encoder_2": 694_659_840,
            },
        ),
    ],
)
def test_the_real_models(tmp_path, layout, counts):
    """The shipped configurations have the published models' numbers of weights, and follow from their shapes."""
    configs = single_files.skeleton(layout)
    with torch.device("meta"):
        modules = {name: single_files.build(name, configs[name]) for name in counts}
    assert {name: module.num_parameters() for name, module in modules.items()} == counts
    shapes = {name: tuple(t.shape) for name, t in single_files.original_state(modules, layout).items()}
    path = single_files.write_header(tmp_path / "m.safetensors", shapes)
    found = dict(single_file.inspect(path, "m", lambda line: None).configs)
    assert found.pop("") == {"_class_name": f"StableDiffusion{'XL' * (layout == 'xl')}Pipeline"}
    assert found == configs


@pytest.mark.parametrize(
    "shapes, message",
    [
        (
            {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)},
            "is a LoRA, not a base model; name the",
        ),
        ({"unet.mid_block.attentions.0.to_q.lora_A.weight": (4, 8)}, "is a LoRA"),
        ({"unet.mid_block.attentions.0.processor.to_q_lora.up.weight": (4, 8)}, "is a LoRA"),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": (4, 8)}, "is a LoRA"),
        ({"lora_unet_input_blocks_1_1.lokr_w1": (4, 8)}, "is a LoRA"),
        ({"emb_params": (4, 768)}, "is a textual-inversion embedding"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "is a textual-inversion embedding"),
        (SD1 | {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, "is a ControlNet"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (8, 8)}, "is a Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "is a Flux"),
        ({"clip_txt_mapper.weight": (8, 8)}, "is a Stable Cascade"),
        (XL | {"edm_mean": (4,)}, "is an EDM model"),
        ({CONV: (384, 4, 3, 3), "conditioner.embedders.0.model.ln_final.weight": (8,)}, "XL refiner"),
        (SD1 | {CONV: (320, 9, 3, 3)}, "is an inpainting model .its UNet takes 9 channels"),
        (SD1 | {CONV: (320, 8, 3, 3)}, "is an image-editing model"),
        (SD1 | {CONV: (320, 7, 3, 3)}, "is an upscaling model"),
        (SD1 | {CONV: (320, 5, 3, 3)}, "is a depth-to-image model"),
        ({"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}, "is a UNet alone, in Diffusers' layout; name the"),
        ({"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3)}, "is an autoencoder .VAE. alone"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}, "is a text encoder alone"),
        ({"some.thing": (8, 8), "other": (8,)}, r"is not a Stable Diffusion that .* .its tensors: other, some\.thing"),
        ({}, "is not a Stable Diffusion"),
        (without(SD1, "cond_stage_model"), "has no text encoder; use the whole checkpoint"),
        (without(SD1, "first_stage_model"), "has no VAE; use"),
        (without(XL, "conditioner", "first_stage_model"), "has no text encoder and no VAE; use"),
    ],
)
def test_what_is_something_else_is_named(shapes, message):
    found = refusal(lambda: detect(header(shapes), "m.safetensors"))
    assert found.startswith("the base model m.safetensors ") and re.search(message, found), found


@pytest.mark.parametrize("shapes, title", [(SD1, "Stable Diffusion 1.x"), (XL, "Stable Diffusion XL")])
def test_what_training_left_in_the_file_does_not_matter(shapes, title):
    more = {"model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3), "global_step": (), "betas": (1000,)}
    assert detect(header(shapes | more), "m").title == title


@functools.cache
def small_shapes(layout):
    with torch.device("meta"):
        modules = single_files.build_modules(layout)
    return {name: tuple(t.shape) for name, t in single_files.original_state(modules, layout).items()}


def write_altered(tmp_path, layout, alter=lambda shapes: None, dtype="F16"):
    shapes = dict(small_shapes(layout))
    alter(shapes)
    return single_files.write_header(tmp_path / "m.safetensors", shapes, dtype=dtype)


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.out.2.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "first_stage_model.decoder.conv_in.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    ],
)
@pytest.mark.parametrize("shape", [None, (), (7,)])
def test_sizes_that_cannot_be_read(tmp_path, key, shape):
    def alter(shapes):
        del shapes[key]
        if shape is not None:
            shapes[key] = shape

    path = write_altered(tmp_path, "sd1", alter)
    assert "incomplete" in refusal(lambda: single_file.inspect(path, "m", lambda line: None))


def test_an_irregular_unet(tmp_path):
    def alter(shapes):
        for name in [name for name in shapes if ".input_blocks.1.1." in name]:
            shapes[name.replace(".input_blocks.1.1.", ".input_blocks.3.1.")] = shapes.pop(name)
        for name in [name for name in shapes if ".middle_block.1." in name]:
            del shapes[name]

    path = write_altered(tmp_path, "sd1", alter)
    assert "irregular shape; use a folder" in refusal(lambda: single_file.inspect(path, "m", lambda line: None))


def test_quantised_weights(tmp_path):
    path = write_altered(tmp_path, "sd1", dtype="F8_E4M3")
    assert "stored as F8_E4M3, a quantised form; use the fp16" in refusal(
        lambda: single_file.inspect(path, "m", lambda line: None)
    )


@pytest.mark.parametrize(
    "extra, metadata, expected",
    [
        ({}, {}, None),
        ({"v_pred": ()}, {}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({}, {"modelspec.prediction_type": "else"}, None),
    ],
)
def test_the_prediction_type_that_a_file_names(extra, metadata, expected):
    assert said_prediction(header(SD1 | extra, **metadata)) == expected


@pytest.mark.parametrize("layout, assumed", [("sd1", "epsilon"), ("sd2", "v_prediction"), ("xl", "epsilon")])
def test_the_prediction_type_that_is_assumed_is_said(tmp_path, layout, assumed):
    lines = []
    found = single_file.inspect(write_altered(tmp_path, layout), "m", lines.append)
    assert found.configs["scheduler"]["prediction_type"] == assumed
    assert f"predicts {assumed} (assumed, since the file does not say; train_args.prediction_type" in lines[0]


@pytest.mark.parametrize("layout", ["sd1", "sd2", "xl"])
def test_a_schedule_that_ends_in_noise(tmp_path, layout):
    path = write_altered(tmp_path, layout, lambda shapes: shapes.update({"v_pred": (), "ztsnr": ()}))
    lines = []
    scheduler = single_file.inspect(path, "m", lines.append).configs["scheduler"]
    assert scheduler["rescale_betas_zero_snr"] is True and scheduler["prediction_type"] == "v_prediction"
    assert scheduler["timestep_spacing"] == "trailing" and scheduler["_class_name"] != "PNDMScheduler"
    assert "as the file says" in lines[0]


def test_old_names_of_the_first_text_encoder():
    part = next(layout for layout in LAYOUTS if layout.title.endswith("1.x")).parts["text_encoder"]
    name = "cond_stage_model.transformer.embeddings.token_embedding.weight"
    assert original_name(name, part) == "text_model.embeddings.token_embedding.weight"
    new = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    assert original_name(new, part) == "text_model.final_layer_norm.bias"


def test_a_component_that_the_layout_lacks(tmp_path):
    found = single_file.inspect(write_altered(tmp_path, "sd1"), "m", lambda line: None)
    assert "the base model m has no text_encoder_2" in refusal(lambda: found.part("text_encoder_2"))

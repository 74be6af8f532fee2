"""Parts loaded from one file: the very weights of Diffusers' layout, or a refusal."""

from dataclasses import replace

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from engine.core.errors import ModelError
from engine.models import single_file
from engine.models.family import LoadArgs
from engine.models.loading.modules import load_module
from engine.models.loading.tokenizers import load_tokenizer
from engine.models.objectives.diffusion.sampler import load_scheduler
from engine.models.quantization.layer import QuantisedLinear
from tests.support import single_files

LAYOUTS = ("sd1", "sd2", "xl")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {layout: single_files.write(folder / f"{layout}.safetensors", layout) for layout in LAYOUTS}


def args_for(path, dtype=torch.float32, prediction_type="epsilon"):
    return LoadArgs(
        folder=path.parent,
        variants={},
        dtype=dtype,
        device=torch.device("cpu"),
        prediction_type=prediction_type,
        single_file=single_file.inspect(path, path.name, lambda line: None),
        caption_tokens=75,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_is_where_diffusers_has_it(files, layout):
    args = args_for(files[layout])
    for component, expected in single_files.build_modules(layout).items():
        found = load_module(single_files.CLASSES[component], args, component)
        state = found.state_dict()
        assert state.keys() == expected.state_dict().keys()
        assert [name for name, tensor in expected.state_dict().items() if not torch.equal(state[name], tensor)] == []
        assert not found.training and not any(parameter.requires_grad for parameter in found.parameters())
        assert all(p.is_contiguous() and p.data_ptr() % 64 == 0 for p in found.parameters())


@pytest.mark.parametrize("stored, wanted", [(torch.float16, torch.float32), (torch.float32, torch.bfloat16)])
def test_weights_come_in_the_tasks_precision(tmp_path, stored, wanted):
    args = args_for(single_files.write(tmp_path / "m.safetensors", "sd1", dtype=stored), wanted)
    found = load_module(single_files.CLASSES["unet"], args, "unet")
    expected = single_files.build_modules("sd1")["unet"].conv_in.weight.detach().to(stored).to(wanted)
    assert found.dtype == wanted and torch.equal(found.conv_in.weight, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_denoiser_is_made_of_the_weights_in_the_tasks_precision(files, dtype):
    args = replace(args_for(files["xl"], dtype), quantised={"unet": "nf4"})
    found = load_module(single_files.CLASSES["unet"], args, "unet")
    layers = {name: one for name, one in found.named_modules() if isinstance(one, QuantisedLinear)}
    assert layers
    for name, original in single_files.build_modules("xl")["unet"].named_modules():
        if name in layers:
            own = QuantisedLinear(original.to(dtype), "nf4", device=torch.device("cpu"), dtype=dtype)
            assert torch.equal(layers[name].qweight, own.qweight) and torch.equal(layers[name].scales, own.scales)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_go_straight_to_the_device(files, layout):
    """On the device `meta` nothing has memory: no tensor of a part may stay behind on the CPU."""
    for component in single_files.build_modules(layout):
        found = load_module(single_files.CLASSES[component], args_for(files[layout]), component, torch.device("meta"))
        assert {tensor.device.type for tensor in (*found.parameters(), *found.buffers())} == {"meta"}


def test_the_text_encoders_give_the_same_states(files):
    """Activation and heads are no weights: the modules must behave alike too."""
    for layout in LAYOUTS:
        modules = single_files.build_modules(layout)
        for component in (name for name in modules if name.startswith("text_encoder")):
            found = load_module(single_files.CLASSES[component], args_for(files[layout]), component)
            tokens = torch.tensor([[49406, 320, 1125, 49407, *[0] * 73]])
            with torch.no_grad():
                own, expected = (module(tokens, output_hidden_states=True) for module in (found, modules[component]))
            assert torch.equal(own.hidden_states[-2], expected.hidden_states[-2])
            assert torch.equal(own[0], expected[0])


def alter(path, target, change):
    state = load_file(path)
    change(state)
    save_file(state, target)
    return args_for(target)


def refused(args, component):
    with pytest.raises(ModelError) as caught:
        load_module(single_files.CLASSES[component], args, component)
    assert caught.value.code == 4 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "layout, component, key",
    [
        ("sd1", "unet", "model.diffusion_model.output_blocks.0.0.in_layers.2.weight"),
        ("sd1", "unet", "model.diffusion_model.time_embed.0.bias"),
        ("sd1", "vae", "first_stage_model.quant_conv.weight"),
        ("sd1", "text_encoder", "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        ("sd2", "text_encoder", "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias"),
        ("xl", "text_encoder_2", "conditioner.embedders.1.model.ln_final.weight"),
    ],
)
def test_missing_and_misshapen_weights(files, tmp_path, layout, component, key):
    assert component in refused(alter(files[layout], tmp_path / "a", lambda state: state.pop(key)), component)

    def misshape(state):
        state[key] = state[key][:-1].clone()

    refused(alter(files[layout], tmp_path / "b", misshape), component)


def test_weights_without_a_place(files, tmp_path):
    more = {"model.diffusion_model.input_blocks.9.0.in_layers.2.weight": torch.zeros(4, 4, 3, 3)}
    message = refused(alter(files["sd1"], tmp_path / "m", lambda state: state.update(more)), "unet")
    assert "144 of its" in message and "have no place in a UNet2DConditionModel" in message


def test_what_an_autoencoders_training_left_is_no_matter(files, tmp_path):
    more = {"first_stage_model.loss.discriminator.main.0.weight": torch.zeros(3, 3)}
    load_module(
        single_files.CLASSES["vae"], alter(files["sd1"], tmp_path / "m", lambda state: state.update(more)), "vae"
    )


def test_a_text_encoder_without_the_unused_last_layer(files, tmp_path):
    """As files that were written from Diffusers' layout have it."""

    def drop(state):
        for name in list(state):
            if ".resblocks.2." in name or name.endswith(("text_projection", "logit_scale")):
                del state[name]

    found = load_module(single_files.CLASSES["text_encoder"], alter(files["sd2"], tmp_path / "m", drop), "text_encoder")
    expected = single_files.build_modules("sd2")["text_encoder"].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_the_tokenizers(files):
    """The ids that OpenCLIP's own tokenizer gives, and what fills a caption up to 77."""
    cat = [49406, 320, 1125, 539, 320, 2368, 49407]
    for layout, component, pad in (
        ("sd1", "tokenizer", 49407),
        ("sd2", "tokenizer", 0),
        ("xl", "tokenizer", 49407),
        ("xl", "tokenizer_2", 0),
    ):
        tokenizer = load_tokenizer(CLIPTokenizer, args_for(files[layout]), component)
        assert len(tokenizer) == 49408 and tokenizer.model_max_length == 77
        ids = tokenizer("a photo of a cat", padding="max_length", truncation=True, max_length=77).input_ids
        assert ids == [*cat, *[pad] * 70]
        assert tokenizer("Hello, naïve WORLD 42 日本 🐈").input_ids == (
            [49406, 3306, 267, 1097, 35689, 563, 1002, 275, 273, 39121, 19277, 361, 2074, 486, 49407]
        )


def test_the_schedulers(files):
    assert args_for(files["sd2"]).config("scheduler", "scheduler_config.json")["beta_schedule"] == "scaled_linear"
    for layout, name in (("sd1", "PNDMScheduler"), ("sd2", "DDIMScheduler"), ("xl", "EulerDiscreteScheduler")):
        scheduler = load_scheduler(args_for(files[layout], prediction_type="v_prediction"))
        assert type(scheduler).__name__ == name and scheduler.config.prediction_type == "v_prediction"
    assert isinstance(scheduler, EulerDiscreteScheduler)

"""Names of the files that whole-model training publishes."""

import pytest

from engine.training.methods.full.files import index_of, is_complete, is_step_ending, step_ending, weights_of

WEIGHTS = "diffusion_pytorch_model"
SHARDS = {f"unet/{WEIGHTS}-{k:05}-of-00003.safetensors" for k in (1, 2, 3)}
INDEX = f"unet/{WEIGHTS}.safetensors.index.json"
WHOLE = {"unet/config.json", f"unet/{WEIGHTS}.safetensors"}
TEXTS = {"text_encoder_2/config.json", "text_encoder_2/model.safetensors"}


@pytest.mark.parametrize("name", sorted({*WHOLE, *SHARDS, INDEX, *TEXTS}))
def test_what_is_published_has_a_name_for_an_earlier_step(name):
    assert step_ending(name) == f"/{name}" and is_step_ending(f"/{name}")


@pytest.mark.parametrize(
    "name",
    [
        "state.safetensors",
        "config.json",
        "unet/other.json",
        "../unet/config.json",
        "unet/../config.json",
        "a/unet/config.json",
        "Unet/config.json",
        f"unet/{WEIGHTS}.fp16.safetensors",
        f"unet/{WEIGHTS}-1-of-2.safetensors",
        f"unet/{WEIGHTS}.bin",
        "unet/config.json\n",
    ],
)
def test_other_names(name):
    assert step_ending(name) is None and not is_step_ending(f"/{name}") and not is_step_ending(name)


@pytest.mark.parametrize("names", [WHOLE, WHOLE | TEXTS, {"unet/config.json", INDEX, *SHARDS}])
def test_complete(names):
    assert is_complete(names | {"state.safetensors", "manifest.json"})


@pytest.mark.parametrize(
    "names",
    [
        set(),
        {"unet/config.json"},
        {f"unet/{WEIGHTS}.safetensors"},
        WHOLE | {"text_encoder/config.json"},
        {"unet/config.json", *sorted(SHARDS)[:2]},
        {"unet/config.json", *SHARDS, f"unet/{WEIGHTS}.safetensors"},
        {"unet/config.json", *SHARDS, f"unet/{WEIGHTS}-00004-of-00004.safetensors"},
    ],
)
def test_incomplete(names):
    assert not is_complete(names)


def test_the_weights_of_a_component_are_in_order():
    names = {*SHARDS, INDEX, *TEXTS, "unet/config.json"}
    assert weights_of("unet", names) == sorted(SHARDS) and index_of("unet", names) == [INDEX]
    assert weights_of("text_encoder_2", names) == ["text_encoder_2/model.safetensors"]
    assert weights_of("vae", names) == index_of("text_encoder_2", names) == []

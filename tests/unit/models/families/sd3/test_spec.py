"""What shares Stable Diffusion 3's classes and is something else, told from its configurations alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.core.errors import ModelError, TaskError
from engine.models import registry
from engine.models.families.sd3.spec import SPEC, check, check_size, webui_metadata
from engine.task.plan.extent import Extent
from tests.support import tiny, tiny_sd3, tiny_tokenizers

CLIP = {"text_encoder": {"hidden_size": 768, "projection_dim": 768}}
CLIP |= {"text_encoder_2": {"hidden_size": 1280, "projection_dim": 1280}}
MEDIUM = {
    "transformer": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 192,
    },
    "vae": {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    "text_encoder_3": {"d_model": 4096, "num_layers": 24, "vocab_size": 32128},
    **CLIP,
}
"""Stable Diffusion 3 medium, without keys that have their class's defaults."""
NORMED = {"qk_norm": "rms_norm", "dual_attention_layers": []}


def changed(component="transformer", **changes):
    return MEDIUM | {component: MEDIUM[component] | changes}


LARGE = changed(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, **NORMED)
MEDIUM_35 = changed(pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=list(range(13)))


@pytest.mark.parametrize("configs", [MEDIUM, MEDIUM_35, LARGE, MEDIUM | {"text_encoder_3": {}}])
def test_accepted(configs):
    check(configs.__getitem__)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (changed(in_channels=33), "takes 33 channels and gives 16.*inpainting"),
        (changed("vae", latent_channels=4), "its VAE has 4"),
        (changed("vae", shift_factor=None), "shift_factor as 'None'"),
        (changed("vae", latents_mean=[0.0] * 16), "scales each channel separately"),
        (changed(patch_size=4), "tokens of 4 x 4 latents"),
        (changed(caption_projection_dim=1152), "captions projected to 1152"),
        (changed(dual_attention_layers=["0"]), "not that of a Stable Diffusion 3"),
        (changed(qk_norm="layer_norm"), "qk_norm 'layer_norm'"),
        (changed(num_layers=10**9), "num_layers as '1000000000'"),
        (changed(num_attention_heads=-1), "num_attention_heads as '-1'"),
        (changed(pos_embed_max_size=10**6), "sizes that are too large"),
        (changed(pos_embed_max_size="x"), "pos_embed_max_size as 'x'"),
        (changed(joint_attention_dim=2000), "text states of width 2000.*give 2048"),
        (changed(pooled_projection_dim=1280), "pooled text of width 1280.*give 2048 and 2048"),
        (changed("text_encoder_2", projection_dim=None), "projection_dim as 'None'"),
        (changed("text_encoder_3", d_model=1024), "its T5 gives 1024"),
    ],
)
def test_refused(configs, message):
    with pytest.raises(ModelError, match=message) as caught:
        check(configs.__getitem__)
    assert caught.value.code == 4


@pytest.mark.parametrize("size", [(512, 512), (3072, 16), (1024, 1536)])
def test_sizes(size):
    check_size(MEDIUM.__getitem__, Extent(*size))


@pytest.mark.parametrize(
    ("size", "message"),
    [((520, 520), "is 520: expected a multiple of 16 .* 512 or 528"), ((3088, 1024), "ends at 3,072 pixels")],
)
def test_sizes_that_the_transformer_cannot_take(size, message):
    with pytest.raises(TaskError, match=message):
        check_size(MEDIUM.__getitem__, Extent(*size))


@pytest.mark.parametrize("configs, name", [(MEDIUM, "medium"), (MEDIUM_35, "5-medium"), (LARGE, "5-large")])
def test_the_web_interfaces_are_told_the_version(configs, name):
    metadata = webui_metadata(configs.__getitem__, "flow")
    assert metadata["modelspec.architecture"] == f"stable-diffusion-3-{name}/lora"


@pytest.mark.parametrize(
    "pipeline",
    ["StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline", "StableDiffusion3ControlNetPipeline"],
)
def test_other_pipelines_are_named(pipeline):
    with pytest.raises(ModelError, match=rf"{pipeline}' \((a|an) .*StableDiffusion3Pipeline"):
        registry.detect({"_class_name": pipeline})


def test_the_tokens_are_those_of_t5_or_of_clip_without_it(tmp_path):
    tiny.build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    counter = SPEC.token_counter(tmp_path, None, 256)
    assert counter.limit == 75
    tiny_tokenizers.build_t5().save_pretrained(tmp_path / "tokenizer_3")
    counter = SPEC.token_counter(tmp_path, None, 256)
    assert counter.limit == 255 and counter.count("cat") == 4


@pytest.mark.parametrize("version", tiny_sd3.VERSIONS)
def test_the_tiny_model_is_one(version, tmp_path):
    folder = tiny_sd3.build_sd3(tmp_path, version=version)
    check(lambda component: json.loads(Path(folder, component, "config.json").read_text()))

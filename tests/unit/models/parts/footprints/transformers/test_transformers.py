"""What is predicted for training a transformer, beside what torch holds: the published sizes, without memory."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)

from engine.models.families.flux.spec import SPEC as FLUX
from engine.models.families.hunyuan_video.spec import SPEC as HUNYUAN_VIDEO
from engine.models.families.sd3.spec import SPEC as SD3
from engine.models.parts.footprints.transformers import (
    cogvideox,
    flux,
    flux2,
    hunyuan_video,
    ltx,
    qwen_image,
    sd3,
    wan,
    z_image,
)
from engine.models.parts.tape import AdapterTape, Tape, WholeTape
from engine.training.methods.lora.targets import is_target
from tests.support import real_shapes
from tests.support.fake_transformers import training_bytes

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
RANK = 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LAYERS = {"num_layers": 4, "num_single_layers": 3, "n_layers": 3, "n_refiner_layers": 1}
"""The depths of models that are cut short: all blocks of a kind are alike."""


@dataclass(frozen=True)
class Model:
    cls: type
    config: dict[str, Any]
    walk: Any
    targets: tuple[str, ...] | str
    parameters: int
    """The number of parameters, as published (in billions, where it is rounded)."""
    text_length: int = 512
    frames: int | None = None
    """The frames of the latents, for models of videos."""

    def record(self, config: dict[str, Any], tape: Tape, side: int) -> None:
        """Record the transformer on one sample."""
        own = {} if self.frames is None else {"frames": self.frames}
        self.walk.transformer(config, tape, batch=1, side=side, text_length=self.text_length, **own)


MODELS = {
    "sd3-medium": Model(
        SD3Transformer2DModel, real_shapes.SD3_MEDIUM, sd3, SD3.lora_targets, 2_028_328_000, text_length=333
    ),
    "sd35-medium": Model(
        SD3Transformer2DModel, real_shapes.SD35_MEDIUM, sd3, SD3.lora_targets, 2_243_171_520, text_length=333
    ),
    "sd35-large": Model(
        SD3Transformer2DModel, real_shapes.SD35_LARGE, sd3, SD3.lora_targets, 8_056_627_520, text_length=333
    ),
    "flux1-dev": Model(FluxTransformer2DModel, real_shapes.FLUX1_DEV, flux, FLUX.lora_targets, 11_901_408_320),
    "qwen-image": Model(QwenImageTransformer2DModel, real_shapes.QWEN_IMAGE, qwen_image, ATTENTION, 20_430_401_088),
    "z-image": Model(ZImageTransformer2DModel, real_shapes.Z_IMAGE, z_image, ATTENTION, 6_154_908_736),
    "flux2-klein": Model(
        Flux2Transformer2DModel,
        real_shapes.FLUX2_KLEIN,
        flux2,
        r".*\.(to_q|to_k|to_v|to_out\.0|to_qkv_mlp_proj)|single_transformer_blocks\..*\.attn\.to_out",
        3_875_544_576,
    ),
    "hunyuan-video": Model(
        HunyuanVideoTransformer3DModel,
        {"num_layers": 20, "num_single_layers": 40},
        hunyuan_video,
        HUNYUAN_VIDEO.lora_targets,
        12_821_012_544,
        text_length=256,
        frames=16,
    ),
    "cogvideox-2b": Model(
        CogVideoXTransformer3DModel,
        real_shapes.COGVIDEOX_2B,
        cogvideox,
        ATTENTION,
        1_693_783_872,
        text_length=226,
        frames=13,
    ),
    "cogvideox-5b": Model(
        CogVideoXTransformer3DModel,
        real_shapes.COGVIDEOX_5B,
        cogvideox,
        ATTENTION,
        5_570_283_072,
        text_length=226,
        frames=13,
    ),
    "cogvideox-1.5": Model(
        CogVideoXTransformer3DModel,
        real_shapes.COGVIDEOX_15,
        cogvideox,
        ATTENTION,
        5_570_676_352,
        text_length=226,
        frames=22,
    ),
    "ltx": Model(LTXVideoTransformer3DModel, real_shapes.LTX, ltx, ATTENTION, 1_923_385_472, text_length=128, frames=6),
    "wan-1b": Model(WanTransformer3DModel, real_shapes.WAN_1B, wan, ATTENTION, 1_418_996_800, frames=13),
    "wan-14b": Model(WanTransformer3DModel, real_shapes.WAN_14B, wan, ATTENTION, 14_288_491_584, frames=13),
    "wan-2.2-5b": Model(WanTransformer3DModel, real_shapes.WAN_22_5B, wan, ATTENTION, 4_999_787_712, frames=13),
}


def inputs(name, config, side, dtype):
    """The arguments of a transformer for one image."""
    tokens, text = (side // 2) ** 2, MODELS[name].text_length

    def states(width):
        return torch.empty(1, text, width, dtype=dtype)

    time = {"timestep": torch.empty(1)}
    match name.partition("-")[0]:
        case "sd3" | "sd35":
            pooled = {"pooled_projections": torch.empty(1, 2048, dtype=dtype)}
            image = {"hidden_states": torch.empty(1, 16, side, side, dtype=dtype)}
            return image | {"encoder_hidden_states": states(4096)} | pooled | time
        case "z":
            latents, caption = torch.empty(16, 1, side, side, dtype=dtype), torch.empty(text, 2560, dtype=dtype)
            return {"x": [latents], "t": torch.empty(1), "cap_feats": [caption]}
        case "hunyuan":
            video = {"hidden_states": torch.empty(1, 16, MODELS[name].frames, side, side, dtype=dtype)}
            pooled = {"pooled_projections": torch.empty(1, 768, dtype=dtype), "guidance": torch.empty(1)}
            mask = {"encoder_attention_mask": torch.ones(1, text, dtype=torch.int64)}
            return video | {"encoder_hidden_states": states(4096)} | mask | pooled | time
        case "cogvideox":
            video = {"hidden_states": torch.empty(1, MODELS[name].frames, 16, side, side, dtype=dtype)}
            depth, is_rotary = config.get("patch_size_t", 1), config.get("use_rotary_positional_embeddings")
            angles = torch.empty(MODELS[name].frames // depth * tokens, 64)
            rotary = {"image_rotary_emb": (angles, angles) if is_rotary else None}
            return video | {"encoder_hidden_states": states(4096)} | rotary | time
        case "ltx":
            frames = MODELS[name].frames
            video = {"hidden_states": torch.empty(1, frames * side**2, 128, dtype=dtype), "num_frames": frames}
            mask = {"encoder_attention_mask": torch.empty(1, text, dtype=torch.bool)}
            places = {"height": side, "width": side, "rope_interpolation_scale": (8 / 25, 32, 32)}
            return video | {"encoder_hidden_states": states(4096)} | mask | places | time
        case "wan":
            shape = (1, config.get("in_channels", 16), MODELS[name].frames, side, side)
            return {"hidden_states": torch.empty(shape, dtype=dtype), "encoder_hidden_states": states(4096)} | time
        case "qwen":
            image = {"hidden_states": torch.empty(1, tokens, 64, dtype=dtype), "encoder_hidden_states": states(3584)}
            return image | {"img_shapes": [[(1, side // 2, side // 2)]]} | time
        case "flux1":
            image = {"hidden_states": torch.empty(1, tokens, 64, dtype=dtype), "encoder_hidden_states": states(4096)}
            places = {"img_ids": torch.zeros(tokens, 3), "txt_ids": torch.zeros(text, 3)}
            pooled = {"pooled_projections": torch.empty(1, 768, dtype=dtype), "guidance": torch.empty(1)}
            return image | places | pooled | time
        case _:
            image = {"hidden_states": torch.empty(1, tokens, 128, dtype=dtype), "encoder_hidden_states": states(7680)}
            return image | {"img_ids": torch.zeros(tokens, 4), "txt_ids": torch.zeros(text, 4)} | time


def deviation(name, side, precision, *, is_whole, recompute, offloads_inputs=False, is_shallow=False):
    """The prediction relative to what torch holds, which is 0 for equal."""
    model = MODELS[name]
    config = model.config | ({key: LAYERS[key] for key in LAYERS if key in model.config} if is_shallow else {})
    width = 4 if precision == "no" else 2
    sizes: Any = {"width": width, "norm_width": 4}
    tape = WholeTape(**sizes) if is_whole else AdapterTape(is_adapted=is_target(model.targets), rank=RANK, **sizes)
    model.record(config, tape, side)
    found, trained = training_bytes(
        model.cls,
        config,
        lambda dtype: inputs(name, config, side, dtype),
        dtype=DTYPES[precision],
        recompute=recompute,
        targets=None if is_whole else model.targets,
        rank=RANK,
        offloads_inputs=offloads_inputs,
    )
    assert tape.trained == trained
    own = 4 if is_whole else 0
    return tape.peak(recompute=recompute, offloads_inputs=offloads_inputs, gradient_bytes=own) / found - 1


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted(name):
    model = MODELS[name]
    with torch.device("meta"):
        module = model.cls(**model.config)
    tape = WholeTape(width=2, norm_width=4)
    model.record(model.config, tape, 64)
    buffers = sum(buffer.numel() for buffer in module.buffers())
    assert tape.parameters == model.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert tape.frozen == buffers, "a table of positions is in the files, too"


OFTEN = ("sd35-medium", "flux1-dev")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_a_short_model_is_predicted_within_10_percent(name, is_whole, recompute):
    """Largest: 8% (Qwen-Image, whole model); the other models 5%."""
    found = deviation(
        name, 64 if MODELS[name].frames is None else 16, "bf16", is_whole=is_whole, recompute=recompute, is_shallow=True
    )
    assert abs(found) < 0.1


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [name if name == "wan-14b" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_with_the_inputs_of_blocks_in_main_memory_within_15_percent(name, is_whole):
    """Largest: 12% (FLUX.1, LoRA); the other models 10%."""
    options = {"is_whole": is_whole, "recompute": True, "offloads_inputs": True, "is_shallow": True}
    assert abs(deviation(name, 64 if MODELS[name].frames is None else 16, "bf16", **options)) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("name", ["sd35-medium", "sd35-large", "flux1-dev"])
def test_a_published_model_is_predicted_within_5_percent(name, side, is_whole, recompute):
    """Largest: 1.4% (Stable Diffusion 3.5 Medium), 1.0% (Large), 4.7% (FLUX.1, LoRA, with gradient checkpointing)."""
    assert abs(deviation(name, side, "bf16", is_whole=is_whole, recompute=recompute)) < 0.05

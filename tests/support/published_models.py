"""Configurations of the published models, without weights, and tasks to train them."""

import json
from pathlib import Path
from types import SimpleNamespace

from engine.job import memory
from engine.models import registry
from engine.task.task import Dataset, Lora, Model, Task, TrainArgs
from tests.support import real_shapes

GIB = 2**30
SKELETONS = Path(memory.__file__).parents[2] / "models" / "single_file"
PUBLISHED = {name: json.loads((SKELETONS / f"{name}.json").read_text()) for name in ("sd1", "sd2", "xl")}
PIPELINES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline"}


CLIP_L = PUBLISHED["sd1"]["text_encoder"]
CLIP_G = PUBLISHED["xl"]["text_encoder_2"]
SD3_PARTS = {
    "text_encoder": CLIP_L | {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 768},
    "text_encoder_2": CLIP_G,
    "text_encoder_3": real_shapes.T5_XXL,
    "vae": real_shapes.VAE_16,
}
PUBLISHED |= {
    "flux1": {
        "transformer": real_shapes.FLUX1_DEV,
        "text_encoder": CLIP_L,
        "text_encoder_2": real_shapes.T5_XXL,
        "vae": real_shapes.VAE_16,
    },
    "sd35-medium": {"transformer": real_shapes.SD35_MEDIUM, **SD3_PARTS},
    "sd35-large": {"transformer": real_shapes.SD35_LARGE, **SD3_PARTS},
    "z-image": {
        "transformer": real_shapes.Z_IMAGE,
        "text_encoder": real_shapes.QWEN3_4B,
        "vae": real_shapes.VAE_16,
    },
    "qwen-image": {
        "transformer": real_shapes.QWEN_IMAGE,
        "text_encoder": real_shapes.QWEN25_VL_7B,
        "vae": {},
    },
    "flux2-klein": {
        "transformer": real_shapes.FLUX2_KLEIN,
        "text_encoder": real_shapes.QWEN3_4B,
        "vae": real_shapes.VAE_FLUX2,
    },
}
PUBLISHED |= {
    "ltx": {"transformer": real_shapes.LTX, "text_encoder": real_shapes.T5_XXL, "vae": {}},
    "wan-1b": {"transformer": real_shapes.WAN_1B, "text_encoder": real_shapes.UMT5_XXL, "vae": {}},
    "wan-14b": {"transformer": real_shapes.WAN_14B, "text_encoder": real_shapes.UMT5_XXL, "vae": {}},
    "cogvideox-2b": {"transformer": real_shapes.COGVIDEOX_2B, "text_encoder": real_shapes.T5_XXL, "vae": {}},
    "cogvideox-5b": {"transformer": real_shapes.COGVIDEOX_5B, "text_encoder": real_shapes.T5_XXL, "vae": {}},
    "hunyuan-video": {
        "transformer": {},
        "text_encoder": real_shapes.LLAMA_3_8B,
        "text_encoder_2": CLIP_L,
        "vae": {},
    },
}
PIPELINES |= {
    "ltx": "LTXPipeline",
    "wan-1b": "WanPipeline",
    "wan-14b": "WanPipeline",
    "cogvideox-2b": "CogVideoXPipeline",
    "cogvideox-5b": "CogVideoXPipeline",
    "hunyuan-video": "HunyuanVideoPipeline",
    "flux1": "FluxPipeline",
    "sd35-medium": "StableDiffusion3Pipeline",
    "sd35-large": "StableDiffusion3Pipeline",
    "z-image": "ZImagePipeline",
    "qwen-image": "QwenImagePipeline",
    "flux2-klein": "Flux2KleinPipeline",
}


def base_of(name, **changes):
    """A base model of a published size: its configurations alone."""
    configs = PUBLISHED[name] | changes
    family = registry.FAMILIES[PIPELINES[name]]
    return SimpleNamespace(
        config=configs.__getitem__,
        family=family,
        single_file=None,
        variants={},
        place=lambda component: SimpleNamespace(component=component, weight_paths=lambda variant: ()),
    )


def task_of(mixed_precision="bf16", lora=None, **train_args):
    return Task(
        model=Model(name="m"),
        dataset=Dataset(name="d"),
        lora=lora or Lora(rank=4),
        train_args=TrainArgs(**({"batch_size": 1} | train_args)),
        mixed_precision=mixed_precision,
    )


def gpu(available):
    """A machine with so many bytes free on its GPU."""
    return memory.Machine(device="cuda", available=available)


def cpu(available):
    """A machine without a GPU, with so many bytes free."""
    return memory.Machine(device="cpu", available=available)


def peak(name, *, recompute, device="cuda", **options):
    return memory.predict(base_of(name), task_of(**options), recompute=recompute, device=device)

"""The tasks in `examples/tasks/`, and the published models that they train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

EXAMPLES: Final = Path(__file__).parents[2] / "examples" / "tasks"
NAMES: Final = sorted(path.stem for path in EXAMPLES.glob("*.json"))
SIZED: Final = [name for name in NAMES if re.fullmatch(r"[a-z0-9-]+_(lora|full)_\d+gb", name)]
"""Those that name a model, a method and a card: `<model>_<method>_<memory>`."""
PUBLISHED_AS: Final = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
    "stabilityai/stable-diffusion-xl-base-1.0": "xl",
    "stabilityai/stable-diffusion-3.5-medium": "sd35-medium",
    "stabilityai/stable-diffusion-3.5-large": "sd35-large",
    "black-forest-labs/FLUX.1-dev": "flux1",
    "black-forest-labs/FLUX.1-schnell": "flux1",
    "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein",
    "Tongyi-MAI/Z-Image": "z-image",
    "Qwen/Qwen-Image": "qwen-image",
    "Lightricks/LTX-Video": "ltx",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan-1b",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "wan-14b",
    "zai-org/CogVideoX-2b": "cogvideox-2b",
    "zai-org/CogVideoX-5b": "cogvideox-5b",
    "hunyuanvideo-community/HunyuanVideo": "hunyuan-video",
}
"""A model's ID on the Hub -> its name in `published_models.py`."""

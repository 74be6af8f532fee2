"""A model family that the engine does not know: a small transformer on averaged pixels, conditioned on bytes of text.

`spec.py` and `model.py` are all that a family consists of. `ROW` is the line that puts it into the registry.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.toy_family.spec import SPEC

ROW = {SPEC.pipeline: SPEC}


def build_toy(folder: Path, *, seed: int = 0) -> Path:
    """Write a base model with random weights of the seed to `folder`, and return the folder."""
    import torch
    from diffusers import DDIMScheduler

    from tests.support.toy_family.model import TextEncoder, ToyTransformer

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ToyTransformer(width=32, num_layers=2, text_width=16).save_pretrained(folder / "transformer")
        TextEncoder(width=16).save_pretrained(folder / "text_encoder")
    DDIMScheduler(clip_sample=False, steps_offset=1).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": SPEC.pipeline}))
    return folder

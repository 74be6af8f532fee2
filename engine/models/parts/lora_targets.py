"""The layers of shared parts that get an adapter by default. No torch."""

from typing import Final

ATTENTION: Final = ("to_k", "to_q", "to_v", "to_out.0")
"""The four projections of each attention in Diffusers' denoisers."""
JOINT_ATTENTION: Final = tuple(
    f"attn.{layer}" for layer in (*ATTENTION, "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
)
"""The same and those of the text, where image and text have an attention in common."""
CLIP: Final = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The four projections of each attention in CLIP's text encoders."""
CLIP_ROOT: Final = "text_model"
"""The outer module name of a CLIP text encoder's layers. LoRA files contain it; in transformers 5 one of the two
classes lacks it. Readers accept the files with either version."""

"""Which layers of the shared parts get an adapter by default. No torch."""

from typing import Final

ATTENTION: Final = ("to_k", "to_q", "to_v", "to_out.0")
"""The four projections of each attention of Diffusers' denoisers."""
CLIP: Final = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The four projections of each attention of CLIP's text encoders."""
CLIP_ROOT: Final = "text_model"
"""The level around a CLIP text encoder's layers. transformers 5 dropped it from one of its two classes; the files have
it, and readers with either version take it."""

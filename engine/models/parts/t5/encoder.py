"""Encode captions with T5's encoder (Raffel et al. 2020, arXiv:1910.10683), which is never trained here."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import T5EncoderModel, T5TokenizerFast

from engine.models.family import LoadArgs
from engine.models.loading.tokenizers import load_tokenizer as load_any_tokenizer
from engine.models.parts.t5 import tokens


def load_tokenizer(args: LoadArgs, component: str) -> T5TokenizerFast:
    """Load T5's tokenizer from `tokenizer.json`, or from `spiece.model` alone.

    Raises:
        ModelError: files missing or malformed.
    """
    place = args.place(component)
    if place.single_file is None and not (place.folder / "tokenizer.json").is_file():
        tokens.read_sentencepiece(place.folder)  # what transformers says of a malformed file is misleading
    return load_any_tokenizer(T5TokenizerFast, args, component)


def token_ids(tokenizer: Any, caption: str, length: int) -> torch.Tensor:
    """Return a caption's token ids, truncated or padded to `length`: int64, shape (length,), on the CPU."""
    return token_ids_and_mask(tokenizer, caption, length)[0]


def token_ids_and_mask(tokenizer: Any, caption: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `token_ids` does, and which tokens are not padding: bool, shape (length,), on the CPU."""
    # Rows of full length: the bits must not depend on other captions or their lengths.
    found = tokenizer(
        caption,
        max_length=length,
        padding="max_length",
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
    )
    return torch.tensor(found.input_ids), torch.tensor(found.attention_mask, dtype=torch.bool)


@torch.no_grad()
def encode(encoder: T5EncoderModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the encoder's last states for one caption's token ids: shape (length, width), on the CPU.

    Without a mask, padding is attended to, as in Diffusers' pipelines of Stable Diffusion 3, FLUX, LTX-Video and
    CogVideoX. The batch size is 1: the bits must not depend on other captions.

    Args:
        encoder: that of T5 or UMT5.
        ids: the result of `token_ids`.
        mask: which tokens are attended to, bool, shape (length,); None for all.
    """
    device = next(encoder.parameters()).device
    states = encoder(ids[None].to(device), None if mask is None else mask[None].to(device, torch.int64))[0]
    return cast(torch.Tensor, states[0].cpu())

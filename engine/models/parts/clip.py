"""CLIP's text encoders (Radford et al. 2021, arXiv:2103.00020): captions to token ids, and rows of them joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.models.family import Tensors


def token_ids(tokenizer: Any, caption: str, chunks: int = 1) -> torch.Tensor:
    """A caption's token ids, cut or padded to the encoder's full length: int64, shape (77,) for CLIP, on the CPU.

    With several chunks of shape (chunks, 77): the caption goes on in the next row after 75 tokens, wherever that is,
    each row has a start and an end of its own, and rows that nothing is left for are those of an empty caption. These
    are the rows that sd-scripts makes (`--max_token_length`, `_get_input_ids` in library/strategy_base.py), and ComfyUI
    of a prompt without weights (`tokenize_with_weights` in comfy/sd1_clip.py).
    """
    length = tokenizer.model_max_length
    # Always full-length rows: the bits must not depend on what else is encoded, or on its length.
    row = tokenizer("" if chunks > 1 else caption, max_length=length, padding="max_length", truncation=True).input_ids
    if chunks == 1:
        return torch.tensor(row)
    start, end, padding, room = row[0], row[1], row[-1], length - 2
    words = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids
    pieces = [[start, *words[room * k : room * (k + 1)], end] for k in range(chunks)]
    return torch.tensor([piece + [padding] * (length - len(piece)) for piece in pieces])


def encoder_rows(ids: torch.Tensor) -> torch.Tensor:
    """Stacked `token_ids` as a text encoder takes them: shape (B x chunks, 77)."""
    return ids.reshape(-1, ids.shape[-1])


def join_chunks(states: torch.Tensor, size: int) -> torch.Tensor:
    """The states of a batch of `size` captions' rows, one row after the other: shape (B, chunks x 77, width).

    Whole, with every start and end, as ComfyUI joins them (`encode_token_weights` in comfy/sd1_clip.py), where a LoRA
    is used; sd-scripts trains on one start and one end (chunks x 75 + 2 states).
    """
    return states.reshape(size, -1, states.shape[-1])


@torch.no_grad()
def embed_one(embed: Callable[[Tensors], Tensors], tokens: Tensors, device: torch.device) -> Tensors:
    """One sample's tokens to its conditioning, on the CPU: as a batch of one, so that its bits are its own."""
    conditioning = embed({name: ids.unsqueeze(0).to(device) for name, ids in tokens.items()})
    return {name: tensor[0].cpu() for name, tensor in conditioning.items()}

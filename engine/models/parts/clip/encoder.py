"""Tokenise captions for CLIP's text encoders (Radford et al. 2021, arXiv:2103.00020), and join rows of text states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPTokenizer

from engine.core.errors import ModelError
from engine.models.family import LoadArgs, Tensors
from engine.models.loading.tokenizers import load_tokenizer as load_any_tokenizer


def load_tokenizer(args: LoadArgs, component: str) -> CLIPTokenizer:
    """Load CLIP's tokenizer.

    Raises:
        ModelError: files missing or malformed, or not those of the text encoder.
    """
    tokenizer = load_any_tokenizer(CLIPTokenizer, args, component)
    if args.single_file is None or args.elsewhere:
        config = args.config(component.replace("tokenizer", "text_encoder"))
        length, positions = tokenizer.model_max_length, config.get("max_position_embeddings", 77)
        if not 3 <= length <= positions:  # start, end, and something in between
            raise ModelError(
                f"the base model's {component} makes rows of {length:g} tokens, its text encoder takes {positions}: "
                "these parts are of different models"
            )
    return tokenizer


def token_ids(tokenizer: Any, caption: str, chunks: int = 1) -> torch.Tensor:
    """Return a caption's token ids, truncated or padded to the encoder's length: int64, shape (77,), on the CPU.

    With several chunks the shape is (chunks, 77): the caption continues in the next row after each 75 tokens, each row
    has its own start and end token, and the remaining rows are those of an empty caption. sd-scripts makes the same
    rows (`--max_token_length`, `_get_input_ids` in library/strategy_base.py), and so does ComfyUI for a prompt without
    weights (`tokenize_with_weights` in comfy/sd1_clip.py).
    """
    length = tokenizer.model_max_length
    # Rows of full length: the bits must not depend on other captions or their lengths.
    row = tokenizer("" if chunks > 1 else caption, max_length=length, padding="max_length", truncation=True).input_ids
    if chunks == 1:
        return torch.tensor(row)
    start, end, padding, room = row[0], row[1], row[-1], length - 2
    words = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids
    pieces = [[start, *words[room * k : room * (k + 1)], end] for k in range(chunks)]
    return torch.tensor([piece + [padding] * (length - len(piece)) for piece in pieces])


def encoder_rows(ids: torch.Tensor) -> torch.Tensor:
    """Return stacked `token_ids` in the shape that a text encoder takes: (B x chunks, 77)."""
    return ids.reshape(-1, ids.shape[-1])


def join_chunks(states: torch.Tensor, size: int) -> torch.Tensor:
    """Return the text states of `size` captions with their rows concatenated: shape (B, chunks x 77, width).

    The rows keep their start and end tokens, as in ComfyUI (`encode_token_weights` in comfy/sd1_clip.py); sd-scripts
    keeps one start and one end (chunks x 75 + 2 states).
    """
    return states.reshape(size, -1, states.shape[-1])


@torch.no_grad()
def embed_one(embed: Callable[[Tensors], Tensors], tokens: Tensors, device: torch.device) -> Tensors:
    """Return the conditioning of one sample's tokens, on the CPU.

    The batch size is 1: the bits must not depend on other samples.
    """
    conditioning = embed({name: ids.unsqueeze(0).to(device) for name, ids in tokens.items()})
    return {name: tensor[0].cpu() for name, tensor in conditioning.items()}

"""Encode captions with Qwen's language models, which are never trained here (arXiv:2502.13923, arXiv:2505.09388)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import Qwen2TokenizerFast

from engine.core.errors import ModelError
from engine.models.family import LoadArgs, Tensors
from engine.models.loading.tokenizers import load_tokenizer as load_any_tokenizer
from engine.models.parts.qwen.tokens import FOLDER, SPECIAL

STATES: Final = "encoder_hidden_states"
LENGTH: Final = "num_tokens"


def load_tokenizer(args: LoadArgs) -> Qwen2TokenizerFast:
    """Load a Qwen tokenizer.

    Raises:
        ModelError: files missing or malformed, or a tokenizer of another kind.
    """
    tokenizer = load_any_tokenizer(Qwen2TokenizerFast, args, FOLDER)
    if missing := sorted(set(SPECIAL) - tokenizer.get_vocab().keys()):
        raise ModelError(f"the base model's {FOLDER} lacks the token {missing[0]}: it is not one of Qwen's")
    return tokenizer


@torch.no_grad()
def encode(
    encoder: Any, tokenizer: Any, text: str, *, length: int, layers: Sequence[int], pads: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states of one text, on the CPU, and which of them are not padding.

    The states of several layers are side by side: shape (tokens, layers x width). The mask is of bools, shape
    (tokens,).

    Args:
        encoder: a language model of transformers.
        tokenizer: its tokenizer.
        text: longer ones are truncated to `length` tokens.
        length: the number of tokens.
        layers: indices of `hidden_states`, of which 0 is the embedding of the tokens.
        pads: whether shorter texts are padded to `length`; the padding is not attended to.

    The batch size is 1: the bits must not depend on other captions.
    """
    padding = "max_length" if pads else False
    row = tokenizer(text, max_length=length, padding=padding, truncation=True, return_tensors="pt")
    device = next(encoder.parameters()).device
    states = encoder(
        input_ids=row.input_ids.to(device),
        attention_mask=row.attention_mask.to(device),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    joined = torch.cat([states[layer][0] for layer in layers], dim=-1)
    return joined.cpu(), row.attention_mask[0].bool()


def of_fixed_length(states: torch.Tensor, length: int) -> Tensors:
    """Return a caption's states (tokens, width) in tensors whose shapes do not depend on the caption.

    These are `STATES`, shape (length, width), of which those after the text are 0, and `LENGTH`, int64, shape (1,).
    """
    states = states[:length]
    padded = torch.nn.functional.pad(states, (0, 0, 0, length - len(states)))
    return {STATES: padded, LENGTH: torch.tensor([len(states)])}


def of_own_lengths(conditioning: Tensors) -> list[torch.Tensor]:
    """Return each caption's states (tokens, width) from a batch of `of_fixed_length` results."""
    lengths = conditioning[LENGTH].flatten().tolist()
    return [states[:length] for states, length in zip(conditioning[STATES], lengths, strict=True)]

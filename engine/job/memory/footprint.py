"""How large a base model's parts are, and what training them keeps: by walking their configurations. No torch.

Counted is what autograd keeps for the backward pass of frozen layers with adapters: the inputs of norms, activations,
convolutions, of products of two tensors and of adapted layers; a frozen linear layer keeps nothing. Under autocast on
CUDA norms are computed in float32 (on a CPU they are not). Nothing is kept before the first adapted layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

Config = Mapping[str, Any]

_MAX_LAYERS: Final = 1000
"""Of anything that a configuration counts; more is no model, and walking it would take forever."""
_MAX_BLOCKS: Final = 2_000
"""Of attention on one side of a denoiser; published models have some twenty."""


@dataclass(slots=True, kw_only=True)
class Tape:
    """What a walk finds: parameters by number, activations in bytes."""

    is_adapted: Callable[[str], bool]
    rank: int
    width: int
    """Bytes of a value in the task's precision."""
    norm_width: int
    """Bytes of a value that goes into or comes out of a norm."""
    is_dropping: bool = False
    is_traced: bool = False
    """Whether gradients flow through what comes next."""
    parameters: int = 0
    lora: int = 0
    """Parameters of the adapter."""
    kept: int = 0
    """For the backward pass, all in all."""
    kept_outside: int = 0
    """Of them, outside of the blocks that are computed again with gradient checkpointing, and these blocks' inputs."""
    highest: int = 0
    """With gradient checkpointing, the most that is kept while one of these blocks is computed again."""
    largest: int = 0
    """The largest single tensor."""
    _block: int | None = None

    def keep(self, values: int, width: int) -> None:
        """Something kept for the backward pass."""
        self.largest = max(self.largest, values * width)
        if not self.is_traced:
            return
        self.kept += values * width
        if self._block is None:
            self.kept_outside += values * width
        else:
            self._block += values * width

    @contextmanager
    def block(self, values: int, *, is_recomputed: bool = True) -> Iterator[None]:
        """A block whose input of so many values is all that is kept of it with gradient checkpointing."""
        if not is_recomputed:
            yield
            return
        traced = self.is_traced
        self._block = 0
        yield
        inside, self._block = self._block, None
        # A block before the first adapted layer keeps nothing; the first one that holds such a layer, its input.
        if traced or self.is_traced:
            self.kept_outside += values * self.width
        # By then, what came after it has been used and let go.
        self.highest = max(self.highest, self.kept_outside + inside)

    def peak(self, *, recompute: bool) -> int:
        """Bytes at the peak of the forward and backward pass; `recompute` is gradient checkpointing."""
        kept = max(self.highest, self.kept_outside) if recompute else self.kept
        # Besides what is kept there is what is being computed: about as much as the largest tensor.
        return kept + self.largest

    def norm(self, channels: int, rows: int) -> None:
        self.parameters += 2 * channels
        self.keep(channels * rows, self.norm_width)

    def conv(self, name: str, inputs: int, outputs: int, rows: int, *, size: int = 3, is_kept: bool = False) -> None:
        """A convolution that reads `rows` places of all samples; `is_kept` when something else keeps its input."""
        self.parameters += inputs * outputs * size**2 + outputs
        if self.is_adapted(name):
            self.is_traced = True
            self.lora += self.rank * (inputs * size**2 + outputs)
            # PEFT's path casts the input once more; dropped, it is another tensor, with a mask.
            copies = self.width if self.width < 4 or self.is_dropping else 0
            self.keep(inputs * rows, copies + self.is_dropping)
            self.keep(self.rank * rows, self.width)
        if not is_kept:
            self.keep(inputs * rows, self.width)

    def linear(
        self, name: str, inputs: int, outputs: int, rows: int, *, bias: bool = True, input_width: int = 0
    ) -> bool:
        """A linear layer; `input_width` of its input where nothing else keeps that. True when it is adapted."""
        self.parameters += inputs * outputs + bias * outputs
        if not self.is_adapted(name):
            return False
        self.is_traced = True
        self.lora += self.rank * (inputs + outputs)
        self.keep(self.rank * rows, self.width)
        self.keep(inputs * rows, self.width + 1 if self.is_dropping else input_width)
        return True


def unet(config: Config, tape: Tape, *, batch: int, side: int, text_length: int, text_is_traced: bool = False) -> None:
    """Walk a `UNet2DConditionModel` over `batch` latents of `side` x `side`.

    Raises:
        KeyError, TypeError, ValueError, IndexError: no such configuration.
    """
    walk = _UNet(config, tape, batch, text_length)
    walk.tape.is_traced = text_is_traced
    walk.run(side)


class _UNet:
    def __init__(self, config: Config, tape: Tape, batch: int, text_length: int) -> None:
        self.config, self.tape, self.batch = config, tape, batch
        self.widths: list[int] = list(config["block_out_channels"])
        depth = len(self.widths)
        self.layers = each_level(config.get("layers_per_block", 2), depth)
        self.depths = each_level(config.get("transformer_layers_per_block", 1), depth)
        if sum(layers * depth for layers, depth in zip(self.layers, self.depths, strict=True)) > _MAX_BLOCKS:
            raise ValueError("no model has so many blocks")
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        self.heads = each_level(heads, depth)
        self.text_rows = batch * text_length
        self.text_width = int(config.get("cross_attention_dim", 1280))
        self.is_linear = bool(config.get("use_linear_projection"))
        self.time_width = 4 * self.widths[0]
        self.has_text = False

    def run(self, side: int) -> None:
        first, tape = self.widths[0], self.tape
        self._embeddings()
        rows = self.batch * side**2
        tape.conv("conv_in", int(self.config.get("in_channels", 4)), first, rows)
        skips, width = [first], first
        for level, kind in enumerate(self.config["down_block_types"]):
            for layer in range(self.layers[level]):
                name = f"down_blocks.{level}"
                self._resnet(f"{name}.resnets.{layer}", width, self.widths[level], rows)
                width = self.widths[level]
                if "CrossAttn" in kind:
                    self._transformer(f"{name}.attentions.{layer}", level, width, rows)
                skips.append(width)
            if level < len(self.widths) - 1:
                tape.conv(f"down_blocks.{level}.downsamplers.0.conv", width, width, rows)
                side = (side + 1) // 2
                rows = self.batch * side**2
                skips.append(width)
        # Diffusers' checkpointing leaves the middle's first one out.
        self._resnet("mid_block.resnets.0", width, width, rows, is_recomputed=False)
        self._transformer("mid_block.attentions.0", len(self.widths) - 1, width, rows)
        self._resnet("mid_block.resnets.1", width, width, rows)
        self._up(skips, rows)

    def _up(self, skips: list[int], rows: int) -> None:
        tape, width = self.tape, self.widths[-1]
        for place, kind in enumerate(self.config["up_block_types"]):
            level, name = len(self.widths) - 1 - place, f"up_blocks.{place}"
            for layer in range(self.layers[level] + 1):
                self._resnet(f"{name}.resnets.{layer}", width + skips.pop(), self.widths[level], rows)
                width = self.widths[level]
                if "CrossAttn" in kind:
                    self._transformer(f"{name}.attentions.{layer}", level, width, rows)
            if level > 0:
                rows *= 4
                tape.conv(f"{name}.upsamplers.0.conv", width, width, rows)
        tape.norm(width, rows)
        tape.keep(width * rows, tape.norm_width)
        tape.conv("conv_out", width, int(self.config.get("out_channels", 4)), rows)

    def _embeddings(self) -> None:
        first, tape, rows = self.widths[0], self.tape, self.batch
        tape.linear("time_embedding.linear_1", first, self.time_width, rows, input_width=tape.width)
        tape.linear("time_embedding.linear_2", self.time_width, self.time_width, rows, input_width=tape.width)
        if self.config.get("addition_embed_type") == "text_time":
            added = int(self.config["projection_class_embeddings_input_dim"])
            tape.linear("add_embedding.linear_1", added, self.time_width, rows, input_width=tape.width)
            tape.linear("add_embedding.linear_2", self.time_width, self.time_width, rows, input_width=tape.width)

    def _resnet(self, name: str, inputs: int, outputs: int, rows: int, *, is_recomputed: bool = True) -> None:
        tape = self.tape
        with tape.block(inputs * rows, is_recomputed=is_recomputed):
            tape.norm(inputs, rows)
            tape.keep(inputs * rows, tape.norm_width)  # SiLU
            tape.conv(f"{name}.conv1", inputs, outputs, rows)
            tape.linear(f"{name}.time_emb_proj", self.time_width, outputs, self.batch, input_width=tape.width)
            tape.norm(outputs, rows)
            tape.keep(outputs * rows, tape.norm_width)
            tape.conv(f"{name}.conv2", outputs, outputs, rows)
            if inputs != outputs:
                # Where the norm keeps a cast of the block's input, this keeps the input itself.
                is_kept = tape.width == tape.norm_width
                tape.conv(f"{name}.conv_shortcut", inputs, outputs, rows, size=1, is_kept=is_kept)

    def _transformer(self, name: str, level: int, width: int, rows: int) -> None:
        tape = self.tape
        tape.norm(width, rows)
        self._project(f"{name}.proj_in", width, rows)
        for k in range(self.depths[level]):
            with tape.block(width * rows):
                self._transformer_block(f"{name}.transformer_blocks.{k}", width, rows, self.heads[level])
        self._project(f"{name}.proj_out", width, rows)

    def _project(self, name: str, width: int, rows: int) -> None:
        if self.is_linear:
            self.tape.linear(name, width, width, rows, input_width=self.tape.norm_width)
        else:
            self.tape.conv(name, width, width, rows, size=1)

    def _transformer_block(self, name: str, width: int, rows: int, heads: int) -> None:
        tape = self.tape
        tape.norm(width, rows)
        self._attention(f"{name}.attn1", width, rows, heads, is_cross=False)
        tape.norm(width, rows)
        self._attention(f"{name}.attn2", width, rows, heads, is_cross=True)
        tape.norm(width, rows)
        tape.linear(f"{name}.ff.net.0.proj", width, 8 * width, rows, input_width=tape.norm_width)
        # The gate, what it opens, and what came of the gate (GEGLU).
        tape.keep(8 * width * rows, tape.width)
        tape.keep(4 * width * rows, tape.width)
        tape.linear(f"{name}.ff.net.2", 4 * width, width, rows, input_width=tape.width)

    def _attention(self, name: str, width: int, rows: int, heads: int, *, is_cross: bool) -> None:
        """Of the places among themselves, or of the places to the text's."""
        tape = self.tape
        context, context_rows = (self.text_width, self.text_rows) if is_cross else (width, rows)
        shared = tape.linear(f"{name}.to_q", width, width, rows, bias=False, input_width=tape.norm_width)
        for projection in ("to_k", "to_v"):
            is_kept = self.has_text if is_cross else shared
            input_width = 0 if is_kept else tape.width if is_cross else tape.norm_width
            found = tape.linear(
                f"{name}.{projection}", context, width, context_rows, bias=False, input_width=input_width
            )
            shared |= found
            self.has_text |= found and is_cross
        tape.keep(2 * width * rows, tape.width)  # queries and what comes out
        tape.keep(2 * width * context_rows, tape.width)
        tape.keep(heads * rows, 4)  # the softmax's logarithms
        tape.linear(f"{name}.to_out.0", width, width, rows)


def conv_parameters(inputs: int, outputs: int, size: int = 3) -> int:
    return inputs * outputs * size**2 + outputs


def linear_parameters(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def count_of(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_LAYERS:
        raise ValueError(f"{value!r} is no number of layers")
    return value


def each_level(value: Any, length: int) -> list[int]:
    """One number for each resolution, from a list or a number for all of them."""
    found = [count_of(item) for item in value] if isinstance(value, list | tuple) else [count_of(value)] * length
    if len(found) != length or math.prod((len(found), sum(found))) > _MAX_LAYERS**2:
        raise ValueError(f"{value!r} is not for {length} resolutions")
    return found

"""Count the parameters of a `UNet2DConditionModel` and the memory of training it. No torch."""

from __future__ import annotations

from typing import Final

from engine.models.parts.tape import Config, Tape, each_level

_MAX_BLOCKS: Final = 2_000
"""Limit on the attention blocks on one side of a UNet; published models have about twenty."""


def unet(config: Config, tape: Tape, *, batch: int, side: int, text_length: int, text_is_traced: bool = False) -> None:
    """Record a `UNet2DConditionModel` on `batch` latents of `side` x `side`.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the configuration is not that of such a UNet.
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
            raise ValueError("too many attention blocks")
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
        # Diffusers does not checkpoint the first resnet of the middle block.
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
                # If the norm keeps a cast of the block's input, the shortcut keeps the input itself.
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
        # GEGLU keeps its input (values and gate) and the activated gate.
        tape.keep(8 * width * rows, tape.width)
        tape.keep(4 * width * rows, tape.width)
        tape.linear(f"{name}.ff.net.2", 4 * width, width, rows, input_width=tape.width)

    def _attention(self, name: str, width: int, rows: int, heads: int, *, is_cross: bool) -> None:
        """Record an attention: self-attention over the positions, or cross-attention to the text (`is_cross`)."""
        tape = self.tape
        context, context_rows = (self.text_width, self.text_rows) if is_cross else (width, rows)
        shared = tape.linear(f"{name}.to_q", width, width, rows, bias=False, input_width=tape.norm_width)
        for projection in ("to_k", "to_v"):
            found = tape.linear(
                f"{name}.{projection}",
                context,
                width,
                context_rows,
                bias=False,
                input_width=tape.width if is_cross else tape.norm_width,
                is_kept=self.has_text if is_cross else shared,
            )
            shared |= found
            self.has_text |= found and is_cross
        tape.keep(2 * width * rows, tape.width)  # queries and output
        tape.keep(2 * width * context_rows, tape.width)  # keys and values
        tape.keep(heads * rows, 4)  # the softmax's logarithms
        tape.linear(f"{name}.to_out.0", width, width, rows, input_width=tape.width, is_kept=True)

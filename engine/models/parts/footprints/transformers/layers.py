"""The layers that the transformers of flow-matching models share, recorded on a tape. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine.models.parts.tape import Tape

TIME_WIDTH: Final = 256
"""Values in which Diffusers encodes a timestep before the first linear layer."""
_FLOAT32: Final = 4

IMAGE_PROJECTIONS: Final = ("to_q", "to_k", "to_v")
TEXT_PROJECTIONS: Final = ("add_q_proj", "add_k_proj", "add_v_proj")
"""The layers of queries, keys and values of an attention that image and text have in common."""

HeadNorm = Callable[[Tape, int, int], None]
"""Records the norm of queries or keys, from the tape, the width of a head, and the number of rows of all heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The tokens of one kind in a block with separate weights for image and text."""

    rows: int
    """Positions of all samples."""
    projections: tuple[str, str, str]
    """The layers of queries, keys and values."""
    out: str | None
    """The layer after the attention; None if the block leaves this stream out from there on."""
    feed_forward: str
    is_modulated: bool
    """True if the backward pass needs the values that the modulation scales: its weights are trained."""

    @classmethod
    def of_image(cls, rows: int, *, is_modulated: bool, feed_forward: str = "ff") -> Stream:
        """Return the stream of the image, with Diffusers' usual names."""
        return cls(
            rows=rows,
            projections=IMAGE_PROJECTIONS,
            out="to_out.0",
            feed_forward=feed_forward,
            is_modulated=is_modulated,
        )

    @classmethod
    def of_text(
        cls, rows: int, *, is_modulated: bool, feed_forward: str = "ff_context", is_left_out: bool = False
    ) -> Stream:
        """Return the stream of the text; `is_left_out` if the block leaves it out after the attention."""
        return cls(
            rows=rows,
            projections=TEXT_PROJECTIONS,
            out=None if is_left_out else "to_add_out",
            feed_forward=feed_forward,
            is_modulated=is_modulated,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Records the parts of a transformer's blocks on a tape."""

    tape: Tape
    width: int
    heads: int
    head_norm: HeadNorm | None
    has_bias: bool = True
    attention_width: int
    """Bytes of a value that leaves the attention."""
    copies_joint: bool = False
    """True if the output of the attention of image and text is copied before the layers that follow."""

    def enter(self, name: str, stream: Stream) -> None:
        """Record a modulated norm, and the projections to queries, keys and values."""
        self.modulated_norm(stream.rows, is_modulated=stream.is_modulated)
        self.project(f"{name}.attn", stream.projections, stream.rows, input_width=self.tape.norm_width)

    def project(self, name: str, layers: Sequence[str], rows: int, *, input_width: int, is_kept: bool = False) -> None:
        """Record linear layers on the same input, and the norms of queries and keys."""
        for layer in layers:
            is_kept |= self.tape.linear(
                f"{name}.{layer}",
                self.width,
                self.width,
                rows,
                input_width=input_width,
                is_kept=is_kept,
                bias=self.has_bias,
            )
        self.norm_heads(rows)

    def norm_heads(self, rows: int) -> None:
        """Record the norms of queries and keys."""
        for _ in range(2 if self.head_norm else 0):
            assert self.head_norm is not None
            self.head_norm(self.tape, self.width // self.heads, rows * self.heads)

    def attend(self, rows: int, *, new: int = 4) -> None:
        """Record the attention among `rows` positions.

        Args:
            rows: positions of all samples, with those of the text.
            new: how many of queries, keys, values and output are not kept already.
        """
        self.tape.keep(new * self.width * rows, self.tape.width)
        self.tape.keep(self.heads * rows, _FLOAT32)  # the softmax's logarithms

    def leave(self, name: str, stream: Stream, feed_forward: Callable[[str, int], None]) -> None:
        """Record what follows the attention in one stream; `feed_forward` records a layer by its name and rows."""
        if stream.out is None:
            return
        self.project_out(f"{name}.attn.{stream.out}", stream.rows, is_kept=not self.copies_joint)
        self.gate(stream.rows, is_modulated=stream.is_modulated)
        self.modulated_norm(stream.rows, is_modulated=stream.is_modulated)
        feed_forward(f"{name}.{stream.feed_forward}", stream.rows)
        self.gate(stream.rows, is_modulated=stream.is_modulated)

    def project_out(self, name: str, rows: int, *, is_kept: bool = True) -> None:
        """Record the linear layer on an attention's output; `is_kept` if the attention keeps the same tensor."""
        self.tape.linear(
            name,
            self.width,
            self.width,
            rows,
            input_width=self.attention_width,
            is_kept=is_kept and self.attention_width == self.tape.width,
            bias=self.has_bias,
        )

    def joint_block(self, name: str, batch: int, rows: int, text_rows: int) -> None:
        """Record a block of FLUX.1 or HunyuanVideo with separate weights for image and text, attended to together."""
        width = self.width
        image, text = (
            of(
                size,
                is_modulated=self.tape.linear(
                    f"{name}.{norm}.linear", width, 6 * width, batch, input_width=self.tape.width
                ),
            )
            for of, size, norm in ((Stream.of_image, rows, "norm1"), (Stream.of_text, text_rows, "norm1_context"))
        )
        self.enter(name, image)
        self.enter(name, text)
        self.attend(rows + text_rows)
        self.leave(name, image, self.gelu)
        self.leave(name, text, self.gelu)

    def modulated_norm(self, rows: int, *, is_modulated: bool) -> None:
        """Record a layer norm without weights that is scaled and shifted by each sample's modulation."""
        self.tape.norm(self.width, rows, weights=0)
        if is_modulated:
            self.tape.keep(self.width * rows, self.tape.norm_width)

    def gate(self, rows: int, *, is_modulated: bool) -> None:
        """Record a product with each sample's modulation."""
        if is_modulated:
            self.tape.keep(self.width * rows, self.tape.width)

    def gelu(self, name: str, rows: int) -> None:
        """Record Diffusers' feed-forward layer with an activation that keeps its input."""
        inner, tape = 4 * self.width, self.tape
        tape.linear(f"{name}.net.0.proj", self.width, inner, rows, input_width=tape.norm_width)
        tape.keep(inner * rows, tape.width)
        tape.linear(f"{name}.net.2", inner, self.width, rows, input_width=tape.width)
        tape.passing(self.gelu_bytes(rows))

    def gelu_bytes(self, rows: int) -> int:
        """Return the bytes that exist in the forward pass through `gelu` and are not kept.

        They are the norm's result, the same modulated, the activation's output, the layer's, and the residuals.
        """
        return ((4 + 3) * self.width * self.tape.width + 2 * self.width * self.tape.norm_width) * rows


def embedder(tape: Tape, name: str, inputs: int, width: int, batch: int, *, bias: bool = True) -> None:
    """Record the two linear layers that embed a number or a vector of each sample."""
    tape.linear(f"{name}.linear_1", inputs, width, batch, input_width=tape.width, bias=bias)
    tape.linear(f"{name}.linear_2", width, width, batch, input_width=tape.width, bias=bias)


def final_layers(tape: Tape, width: int, outputs: int, rows: int, batch: int, *, bias: bool = True) -> None:
    """Record `norm_out`, which is modulated, and `proj_out`."""
    is_modulated = tape.linear("norm_out.linear", width, 2 * width, batch, input_width=tape.width, bias=bias)
    tape.norm(width, rows, weights=0)
    if is_modulated:
        tape.keep(width * rows, tape.norm_width)
    tape.linear("proj_out", width, outputs, rows, input_width=tape.norm_width, bias=bias)


def torch_rms_norm(tape: Tape, channels: int, rows: int) -> None:
    """Record `torch.nn.RMSNorm`, which keeps its input in float32."""
    tape.weights(channels)
    tape.keep(channels * rows, _FLOAT32)


def diffusers_rms_norm(tape: Tape, channels: int, rows: int) -> None:
    """Record `diffusers.models.normalization.RMSNorm`: it keeps its input, and that in float32."""
    tape.weights(channels)
    tape.keep(channels * rows, _FLOAT32 + (tape.width if tape.width < _FLOAT32 else 0))
    tape.scale(channels * rows, tape.width)


def normed_attention(tape: Tape, name: str, width: int, heads: int, *, rows: int, key_rows: int) -> None:
    """Record an attention of `rows` positions to `key_rows`, with norms of all queries' and keys' heads at once."""
    is_kept = tape.linear(f"{name}.to_q", width, width, rows, input_width=tape.width) and key_rows == rows
    for layer in ("to_k", "to_v"):
        is_kept |= tape.linear(f"{name}.{layer}", width, width, key_rows, input_width=tape.width, is_kept=is_kept)
    for count in (rows, key_rows):
        torch_rms_norm(tape, width, count)
    tape.keep(2 * width * (rows + key_rows), tape.width)
    tape.keep(heads * rows, _FLOAT32)
    # The attention's output is cast to the type of the queries, which are the output of a norm.
    is_kept = tape.norm_width == tape.width
    tape.linear(f"{name}.to_out.0", width, width, rows, input_width=tape.norm_width, is_kept=is_kept)

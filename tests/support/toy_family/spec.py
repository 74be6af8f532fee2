"""The row of the toy family. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from engine.core.errors import ModelError
from engine.models.objectives.objective import TargetType
from engine.models.single_file import SingleFile
from engine.models.spec import CaptionTokens, Configs, DrawingDefaults, FamilySpec, Footprint, ImageEncoder, Workload

TEXT_LENGTH: Final = 12
"""Bytes of a caption that the text encoder usually sees."""
SHRINKS: Final = 8
"""A latent is the mean of a square of so many pixels' sides."""
CHANNELS: Final = 3


class ByteCounter:
    """Counts the bytes of captions."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def count(self, caption: str) -> int:
        return len(caption.encode())


def _token_counter(folder: Path, file: SingleFile | None, caption_tokens: int) -> ByteCounter:
    return ByteCounter(caption_tokens)


def _check(config: Configs) -> None:
    if config("transformer")["text_width"] != config("text_encoder")["width"]:
        raise ModelError("the toy's parts do not belong together")


def _webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    return {"modelspec.architecture": "toy/lora"}


def _footprint(config: Configs, workload: Workload) -> Footprint:
    transformer, text = config("transformer"), config("text_encoder")
    width, text_width = transformer["width"], transformer["text_width"]
    text_rows = workload.batch * workload.caption_tokens
    own = workload.text_encoders
    own.weights(256 * text["width"])
    own.linear("mix", text["width"], text["width"], text_rows, input_width=own.width)

    tape, rows = workload.denoiser, workload.batch * (workload.resolution // SHRINKS) ** 2
    tape.is_traced = workload.trains_text_encoders
    for name, inputs, outputs, count in (
        ("project_in", CHANNELS, width, rows),
        ("project_text", text_width, width, text_rows),
        ("project_time", 1, width, workload.batch),
    ):
        tape.linear(name, inputs, outputs, count, input_width=tape.width)
    for k in range(transformer["num_layers"]):
        with tape.block(width * (rows + text_rows)):
            tape.norm(width, rows + text_rows)
            for name in ("to_q", "to_k", "to_v"):
                tape.linear(f"blocks.{k}.{name}", width, width, rows + text_rows, input_width=tape.norm_width)
            tape.keep(4 * width * (rows + text_rows), tape.width)
            tape.linear(f"blocks.{k}.to_out.0", width, width, rows + text_rows, input_width=tape.width, is_kept=True)
    tape.linear("project_out", width, CHANNELS, rows, input_width=tape.width)
    pixels = CHANNELS * workload.resolution**2 * 4
    images = ImageEncoder(parameters=0, weight_bytes=0, encode_bytes=pixels, decode_bytes=pixels)
    return Footprint(images=images)


SPEC: Final = FamilySpec(
    pipeline="ToyPipeline",
    module="tests.support.toy_family.model",
    components=("scheduler", "text_encoder", "transformer"),
    weighted=("text_encoder", "transformer"),
    denoiser="transformer",
    text_encoders=("text_encoder",),
    block_lists=("blocks",),
    lora_targets=("to_q", "to_v"),
    text_lora_targets=("mix",),
    text_root=None,
    objective="diffusion",
    medium="image",
    check=_check,
    webui_metadata=_webui_metadata,
    token_counter=_token_counter,
    caption_tokens=CaptionTokens(usual=TEXT_LENGTH, most=40, step=1),
    drawing=DrawingDefaults(guidance_scale=1.0, num_inference_steps=20),
    hub_tags=("toy",),
    licences={"someone/toy": "mit"},
    footprint=_footprint,
)

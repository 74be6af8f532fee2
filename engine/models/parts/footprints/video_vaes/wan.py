"""Count the parameters of the VAE of Qwen-Image or Wan, and the memory of encoding and decoding a clip. No torch."""

from __future__ import annotations

from typing import Any, Final

from engine.models.parts.footprints.video_vaes.convolutions import convolution
from engine.models.parts.footprints.video_vaes.tiles import Tiles
from engine.models.parts.tape import Config, count_of
from engine.models.spec import ImageEncoder

TILES: Final = Tiles(height=256, width=256, stride_height=192, stride_width=192)
"""The tiles in which Wan's VAE decodes clips."""


def reduction(config: Config) -> int:
    """Return how many pixels of a side are one position of the latents. Raises TypeError."""
    return int(2 ** (len(config.get("dim_mult", (1, 2, 4, 4))) - 1)) * int(config.get("patch_size") or 1)


def image_encoder(
    config: Config, resolution: int, width: int, *, frames: int = 1, tiles: Tiles | None = None
) -> ImageEncoder:
    """Return the footprint of the VAE for clips of `frames` frames of `resolution` x `resolution` pixels.

    `width` is the bytes of a value. With `tiles` a clip is decoded in them, else as a whole. An image has one
    frame.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the configuration is not that of such a VAE.
    """
    first, latent = int(config.get("base_dim", 96)), int(config.get("z_dim", 16))
    last = int(config.get("decoder_base_dim") or first)
    factors = [int(factor) for factor in config.get("dim_mult", (1, 2, 4, 4))]
    blocks, image = count_of(config.get("num_res_blocks", 2)), int(_given(config, "in_channels", "input_channels"))
    times = [bool(item) for item in config.get("temperal_downsample", (False, True, True))]
    is_residual = bool(config.get("is_residual", False))
    shown = int(config.get("out_channels", 3))
    parameters = (
        _encoder([first * factor for factor in factors], times, blocks, image, latent)
        + _decoder([last * factor for factor in factors], times, blocks, shown, latent, is_residual=is_residual)
        + convolution(2 * latent, 2 * latent, 1)
        + convolution(latent, latent, 1)
    )
    patch = int(config.get("patch_size") or 1) ** 2
    frame = resolution**2 // patch * width
    tile = (tiles.largest(resolution) if tiles else resolution**2) // patch * width
    encoding, decoding = _tensors(frames, blocks, is_residual=is_residual)
    values = (0 if frames == 1 else frames) * image
    decode_bytes = decoding * last * tile // 10 + values * tile
    if tiles:
        decode_bytes = tiles.peak(resolution, decode_bytes, frames * shown * width // patch, copies=3)
    return ImageEncoder(
        parameters=parameters,
        weight_bytes=parameters * width,
        encode_bytes=encoding * first * frame // 10 + (2 if is_residual else 1) * values * frame,
        decode_bytes=decode_bytes,
    )


def _tensors(frames: int, blocks: int, *, is_residual: bool) -> tuple[int, int]:
    """Return tenths of the tensors of one frame at full resolution that exist in the encoder, and in the decoder.

    After the first frame, 4 at a time are encoded and decoded. Each convolution of a block keeps the last two frames of
    its input for those that follow, also if there are none. The numbers are those that torch holds.
    """
    if frames == 1:
        return 60 + 20 * blocks + 20 * is_residual, 140 + 20 * blocks + 50 * is_residual
    return 240 + 65 * blocks + 80 * is_residual, 353 + 77 * blocks + 335 * is_residual


def _given(config: Config, *names: str) -> Any:
    """Return the value of the first of these keys that there is: the channels of an image where there is none."""
    return next((config[name] for name in names if name in config), 3)


def _encoder(widths: list[int], times: list[bool], blocks: int, image: int, latent: int) -> int:
    count, last = convolution(image, widths[0]), widths[0]
    for level, width in enumerate(widths):
        count += _resnet(last, width) + (blocks - 1) * _resnet(width, width)
        if level < len(widths) - 1:
            count += convolution(width, width, 9) + (convolution(width, width, 3) if times[level] else 0)
        last = width
    return count + _middle(last) + last + convolution(last, 2 * latent)


def _decoder(widths: list[int], times: list[bool], blocks: int, image: int, latent: int, *, is_residual: bool) -> int:
    last = widths[-1]
    count = convolution(latent, last) + _middle(last)
    for level, width in enumerate(reversed(widths)):
        count += _resnet(last, width) + blocks * _resnet(width, width)
        last = width
        if level < len(widths) - 1:
            last = width if is_residual else width // 2
            count += convolution(width, last, 9) + (convolution(width, 2 * width, 3) if times[::-1][level] else 0)
    return count + last + convolution(last, image)


def _resnet(inputs: int, outputs: int) -> int:
    shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
    return inputs + convolution(inputs, outputs) + outputs + convolution(outputs, outputs) + shortcut


def _middle(width: int) -> int:
    return 2 * _resnet(width, width) + width + convolution(width, 3 * width, 1) + convolution(width, width, 1)

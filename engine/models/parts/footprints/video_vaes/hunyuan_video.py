"""Count the parameters of an `AutoencoderKLHunyuanVideo` and the memory of encoding and decoding a clip. No torch."""

from __future__ import annotations

from typing import Final

from engine.models.parts.footprints.video_vaes.convolutions import convolution
from engine.models.parts.footprints.video_vaes.tiles import Tiles
from engine.models.parts.tape import Config, count_of, linear_parameters
from engine.models.spec import ImageEncoder

_PIECE: Final = 17
"""The frames that are encoded or decoded at a time at most."""
_STRIDE: Final = 12
"""Frames from one piece to the next."""
TILES: Final = Tiles(height=256, width=256, stride_height=192, stride_width=192)
"""The tiles in which a piece is decoded."""


def reduction(config: Config) -> int:
    """Return how many pixels of a side are one position of the latents. Raises TypeError."""
    return int(config.get("spatial_compression_ratio", 8))


def image_encoder(config: Config, resolution: int, width: int, *, frames: int) -> ImageEncoder:
    """Return the footprint of the VAE for clips of `frames` frames of `resolution` x `resolution` pixels.

    `width` is the bytes of a value.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the configuration is not that of such a VAE.
    """
    widths: list[int] = list(config.get("block_out_channels", (128, 256, 512, 512)))
    latent, layers = int(config.get("latent_channels", 16)), count_of(config.get("layers_per_block", 2))
    image, shown = int(config.get("in_channels", 3)), int(config.get("out_channels", 3))
    has_attention = bool(config.get("mid_block_add_attention", True))
    parameters = (
        _encoder(widths, layers, image, latent)
        + _decoder(widths, layers, shown, latent)
        + 2 * _middle(widths[-1], has_attention=has_attention)
        + convolution(2 * latent, 2 * latent, 1)
        + convolution(latent, latent, 1)
    )
    piece, pixel = min(frames, _PIECE), shown * width
    # Convolutions repeat the first frame twice. The factors were fitted to what torch holds.
    tile = widths[0] * TILES.largest(resolution) * width * (9 * piece + 3)
    earlier = (frames - piece) // _STRIDE * _STRIDE * resolution**2 * pixel
    return ImageEncoder(
        parameters=parameters,
        weight_bytes=parameters * width,
        encode_bytes=widths[0] * resolution**2 * width * (5 * piece + 2),
        decode_bytes=earlier + TILES.peak(resolution, tile, piece * pixel, copies=2),
    )


def _encoder(widths: list[int], layers: int, image: int, latent: int) -> int:
    count = convolution(image, widths[0]) + 2 * widths[-1] + convolution(widths[-1], 2 * latent)
    for level, width in enumerate(widths):
        count += _resnet(widths[max(0, level - 1)], width) + (layers - 1) * _resnet(width, width)
        count += convolution(width, width) if level < len(widths) - 1 else 0
    return count


def _decoder(widths: list[int], layers: int, shown: int, latent: int) -> int:
    count = convolution(latent, widths[-1]) + 2 * widths[0] + convolution(widths[0], shown)
    for level, width in enumerate(widths):
        count += _resnet(widths[min(level + 1, len(widths) - 1)], width) + layers * _resnet(width, width)
        count += convolution(width, width) if level > 0 else 0
    return count


def _middle(width: int, *, has_attention: bool) -> int:
    attention = 2 * width + 4 * linear_parameters(width, width)
    return 2 * _resnet(width, width) + attention * has_attention


def _resnet(inputs: int, outputs: int) -> int:
    shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + convolution(inputs, outputs) + 2 * outputs + convolution(outputs, outputs) + shortcut

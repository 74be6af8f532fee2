"""Count the parameters of an `AutoencoderKLCogVideoX` and the memory of encoding and decoding a clip. No torch."""

from __future__ import annotations

from typing import Final

from engine.models.parts.footprints.video_vaes.convolutions import convolution
from engine.models.parts.footprints.video_vaes.tiles import Tiles
from engine.models.parts.tape import Config, conv_parameters, count_of
from engine.models.spec import ImageEncoder

_CHUNK: Final = 9
"""The frames of the first chunk that is encoded or decoded; the others are shorter."""

_OVERLAPS: Final = (1 / 6, 1 / 5)
"""The parts of their height and width in which tiles overlap, as in Diffusers' class."""
_LARGEST_TILE: Final = 1 << 20
"""Pixels; no clip is larger."""


def reduction(config: Config) -> int:
    """Return how many pixels of a side are one position of the latents. Raises TypeError."""
    return int(2 ** (len(config.get("block_out_channels", (128, 256, 256, 512))) - 1))


def tiles(config: Config) -> Tiles:
    """Return the tiles in which clips are decoded, half as high and wide as the clips that the VAE is made for.

    Raises:
        TypeError, ValueError: tiles of that size cannot be joined: Diffusers' class places them at other distances than
            it joins them.
    """
    factor, found = reduction(config), list[int]()
    for side, overlap in zip(
        (config.get("sample_height", 480), config.get("sample_width", 720)), _OVERLAPS, strict=True
    ):
        size = min(int(side) // 2, _LARGEST_TILE)
        stride = size - int(size * overlap)
        if size < factor or int(size // factor * (1 - overlap)) * factor != stride:
            raise ValueError(f"tiles of {size} pixels cannot be joined")
        found += [size, stride]
    return Tiles(height=found[0], stride_height=found[1], width=found[2], stride_width=found[3])


def image_encoder(config: Config, resolution: int, width: int, *, frames: int) -> ImageEncoder:
    """Return the footprint of the VAE for clips of `frames` frames of `resolution` x `resolution` pixels.

    `width` is the bytes of a value.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the configuration is not that of such a VAE.
    """
    widths: list[int] = list(config.get("block_out_channels", (128, 256, 256, 512)))
    latent, layers = int(config.get("latent_channels", 16)), count_of(config.get("layers_per_block", 3))
    image, shown = int(config.get("in_channels", 3)), int(config.get("out_channels", 3))
    parameters = _encoder(widths, layers, image, latent) + _decoder(widths, layers, shown, latent)
    parameters += convolution(2 * shown, 2 * shown, 1) * bool(config.get("use_quant_conv", False))
    parameters += convolution(shown, shown, 1) * bool(config.get("use_post_quant_conv", False))
    first, chunk, is_long = widths[0] * width, min(frames, _CHUNK), frames > _CHUNK
    own = tiles(config)
    tile = first * own.largest(resolution) * (12 * chunk + (layers + 1) * (7 + 11 * is_long))
    return ImageEncoder(
        parameters=parameters,
        weight_bytes=parameters * width,
        # Each convolution keeps the last two frames of its input for the next chunk. In all but the first chunk there
        # are those of the chunk before, too. The factors were fitted to what torch holds.
        encode_bytes=first * resolution**2 * (5 * chunk + 5 * layers * (1 + is_long)),
        decode_bytes=own.peak(resolution, tile, frames * shown * width, copies=2),
    )


def _encoder(widths: list[int], layers: int, image: int, latent: int) -> int:
    wide = widths[-1]
    count = convolution(image, widths[0]) + 2 * _resnet(wide, wide) + 2 * wide + convolution(wide, 2 * latent)
    for level, width in enumerate(widths):
        count += _resnet(widths[max(0, level - 1)], width) + (layers - 1) * _resnet(width, width)
        count += conv_parameters(width, width) if level < len(widths) - 1 else 0
    return count


def _decoder(widths: list[int], layers: int, shown: int, latent: int) -> int:
    first, wide = widths[0], widths[-1]
    count = convolution(latent, wide) + 2 * _resnet(wide, wide, latent)
    count += _norm(first, latent) + convolution(first, shown)
    for level, width in enumerate(widths):
        count += _resnet(widths[min(level + 1, len(widths) - 1)], width, latent) + layers * _resnet(
            width, width, latent
        )
        count += conv_parameters(width, width) if level > 0 else 0
    return count


def _norm(channels: int, latent: int | None) -> int:
    """Return the parameters of a norm; in the decoder it is scaled and shifted by functions of the latents."""
    return 2 * channels + (0 if latent is None else 2 * convolution(latent, channels, 1))


def _resnet(inputs: int, outputs: int, latent: int | None = None) -> int:
    shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
    convolutions = convolution(inputs, outputs) + convolution(outputs, outputs)
    return _norm(inputs, latent) + _norm(outputs, latent) + convolutions + shortcut

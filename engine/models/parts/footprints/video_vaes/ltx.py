"""Count the parameters of an `AutoencoderKLLTXVideo` and the memory of encoding and decoding a clip. No torch."""

from __future__ import annotations

from typing import Any, Final

from engine.models.parts.footprints.transformers.layers import TIME_WIDTH
from engine.models.parts.footprints.video_vaes.convolutions import convolution
from engine.models.parts.footprints.video_vaes.tiles import Tiles
from engine.models.parts.tape import Config, count_of, linear_parameters
from engine.models.spec import ImageEncoder

_WIDTHS: Final = (128, 256, 512, 512)
_LAYERS: Final = (4, 3, 3, 3, 4)
_SCALED: Final = (True, True, True, False)
_STRIDES: Final = {"spatial": 4, "temporal": 2, "spatiotemporal": 8}
"""`downsample_type` -> positions that become one."""
_NEWER_BLOCK: Final = "LTXVideo095DownBlock3D"
_PADDING: Final = 2
"""Frames by which the input of a convolution is longer than its output."""
TILES: Final = Tiles(height=512, width=512, stride_height=448, stride_width=448)
"""The tiles in which clips are decoded."""


def image_encoder(config: Config, resolution: int, width: int, *, frames: int = 1) -> ImageEncoder:
    """Return the footprint of the VAE for clips of `frames` frames of `resolution` x `resolution` pixels.

    `width` is the bytes of a value. The VAE encodes a clip as a whole, and decodes all frames of a tile together.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the configuration is not that of such a VAE.
    """
    latent, patch = int(config.get("latent_channels", 128)), int(config.get("patch_size", 4))
    parameters = _encoder(config, latent, patch) + _decoder(config, latent, patch)
    frame = (resolution // patch) ** 2 * width
    first = _list(config, "block_out_channels", _WIDTHS)[0]
    last = _list(config, "decoder_block_out_channels", _WIDTHS)[0] // _list(config, "upsample_factor", (1,))[0]
    pixel = frames * int(config.get("in_channels", 3)) * width
    area = TILES.largest(resolution)
    tile = (2 * frames + 2 * (frames + _PADDING)) * last * (area // patch**2) * width + area * pixel
    return ImageEncoder(
        parameters=parameters,
        weight_bytes=parameters * width,
        # In the outermost block: a convolution's input, the same padded, its output, and more of these.
        encode_bytes=(3 * frames + 2 * (frames + _PADDING)) * first * frame + resolution**2 * pixel,
        decode_bytes=TILES.peak(resolution, tile, pixel, copies=2),
    )


def _list(config: Config, key: str, default: tuple[Any, ...]) -> list[Any]:
    return list(config.get(key) or default)


def _encoder(config: Config, latent: int, patch: int) -> int:
    widths, scaled = _list(config, "block_out_channels", _WIDTHS), _list(config, "spatio_temporal_scaling", _SCALED)
    layers, kinds = _list(config, "layers_per_block", _LAYERS), _list(config, "downsample_type", ("conv",) * 4)
    is_newer = _list(config, "down_block_types", ("",))[-1] == _NEWER_BLOCK
    count = convolution(int(config.get("in_channels", 3)) * patch**2, widths[0])
    outputs = widths[1:] if is_newer else [*widths[1:], widths[-1]]
    for level, (width, output) in enumerate(zip(widths, outputs, strict=False)):
        count += count_of(layers[level]) * _resnet(width, width)
        if scaled[level]:
            strided = width if kinds[level] == "conv" else output // _STRIDES[kinds[level]]
            count += convolution(width, strided)
        count += 0 if is_newer or width == output else _resnet(width, output)
    last = widths[-1]
    return count + count_of(layers[-1]) * _resnet(last, last) + convolution(last, latent + 1)


def _decoder(config: Config, latent: int, patch: int) -> int:
    """Return the parameters of the decoder, whose lists are in the order of the encoder's."""
    widths, layers, scaled, factors, noise = (
        _list(config, key, default)[::-1]
        for key, default in (
            ("decoder_block_out_channels", _WIDTHS),
            ("decoder_layers_per_block", _LAYERS),
            ("decoder_spatio_temporal_scaling", _SCALED),
            ("upsample_factor", (1,) * 4),
            ("decoder_inject_noise", (False,) * 5),
        )
    )
    has_time, width = bool(config.get("timestep_conditioning", False)), widths[0]
    count = convolution(latent, width) + _time(4 * width, has_time)
    count += count_of(layers[0]) * _resnet(width, width, bool(noise[0]), has_time)
    for level, (inner, factor) in enumerate(zip(widths, factors, strict=True)):
        given, output = width // factor, inner // factor
        options = (bool(noise[level + 1]), has_time)
        count += _time(4 * given, has_time) + (0 if given == output else _resnet(given, output, *options))
        count += convolution(output * factor, output * 8) if scaled[level] else 0
        count += count_of(layers[level + 1]) * _resnet(output, output, *options)
        width = output
    own = 1 + _time(2 * width, True) + 2 * width if has_time else 0
    return count + convolution(width, int(config.get("out_channels", 3)) * patch**2) + own


def _time(width: int, has_time: bool) -> int:
    """Return the parameters of the two layers that embed the time, where there is one."""
    return linear_parameters(TIME_WIDTH, width) + linear_parameters(width, width) if has_time else 0


def _resnet(inputs: int, outputs: int, has_noise: bool = False, has_time: bool = False) -> int:
    shortcut = 2 * inputs + convolution(inputs, outputs, 1) if inputs != outputs else 0
    convolutions = convolution(inputs, outputs) + convolution(outputs, outputs)
    return convolutions + shortcut + (2 * has_noise + 4 * has_time) * inputs

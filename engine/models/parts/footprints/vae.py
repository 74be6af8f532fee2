"""Count the parameters of an `AutoencoderKL` and the memory of encoding and decoding an image. No torch."""

from __future__ import annotations

from engine.models.parts.tape import Config, conv_parameters, count_of, linear_parameters
from engine.models.spec import ImageEncoder


def reduction(config: Config) -> int:
    """Return how many pixels of a side are one position of the latents. Raises KeyError, TypeError."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def image_encoder(config: Config, resolution: int, width: int) -> ImageEncoder:
    """Return the footprint of a VAE for images of `resolution` x `resolution`, its values of `width` bytes.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the configuration is not that of an `AutoencoderKL`.
    """
    parameters = _parameters(config)
    return ImageEncoder(
        parameters=parameters,
        weight_bytes=parameters * width,
        encode_bytes=_peak(config, resolution, width, decode=False),
        decode_bytes=_peak(config, resolution, width, decode=True),
    )


def _parameters(config: Config) -> int:
    widths: list[int] = list(config["block_out_channels"])
    latent = int(config.get("latent_channels", 4))
    layers = count_of(config.get("layers_per_block", 1))
    image, shown = int(config.get("in_channels", 3)), int(config.get("out_channels", 3))
    both = conv_parameters(2 * latent, 2 * latent, 1) * bool(config.get("use_quant_conv", True))
    both += conv_parameters(latent, latent, 1) * bool(config.get("use_post_quant_conv", True))
    return both + _encoder(widths, layers, image, latent) + _decoder(_decoder_widths(config), layers, shown, latent)


def _decoder_widths(config: Config) -> list[int]:
    return list(config.get("decoder_block_out_channels") or config["block_out_channels"])


def _encoder(widths: list[int], layers: int, image: int, latent: int) -> int:
    wide = widths[-1]
    count = conv_parameters(image, widths[0]) + _middle(wide) + 2 * wide + conv_parameters(wide, 2 * latent)
    for level, width in enumerate(widths):
        count += _resnet(widths[max(0, level - 1)], width) + (layers - 1) * _resnet(width, width)
        count += conv_parameters(width, width) if level < len(widths) - 1 else 0
    return count


def _decoder(widths: list[int], layers: int, shown: int, latent: int) -> int:
    top, wide = widths[0], widths[-1]
    count = conv_parameters(latent, wide) + _middle(wide) + 2 * top + conv_parameters(top, shown)
    for level, width in enumerate(widths):
        count += _resnet(widths[min(level + 1, len(widths) - 1)], width) + layers * _resnet(width, width)
        count += conv_parameters(width, width) if level > 0 else 0
    return count


def _middle(width: int) -> int:
    return 2 * _resnet(width, width) + 2 * width + 4 * linear_parameters(width, width)


def _peak(config: Config, side: int, width: int, *, decode: bool) -> int:
    """Return the peak bytes of encoding or decoding one image of `side` x `side` pixels, without gradients.

    The peak is in the residual blocks at full resolution. Encoding holds the input at this resolution and, at the end
    of a block, its input, the residual, their sum, and the scaled sum. Decoding holds a block's input, which is wider,
    its norm, and the activation of the norm.
    """
    if decode:
        widths = _decoder_widths(config)
        return 3 * widths[min(1, len(widths) - 1)] * side**2 * width
    return 5 * int(config["block_out_channels"][0]) * side**2 * width


def _resnet(inputs: int, outputs: int) -> int:
    shortcut = conv_parameters(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + conv_parameters(inputs, outputs) + 2 * outputs + conv_parameters(outputs, outputs) + shortcut

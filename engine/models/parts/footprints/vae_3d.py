"""Count the parameters of an `AutoencoderKLQwenImage` and the memory of encoding and decoding an image. No torch."""

from __future__ import annotations

from engine.models.parts.tape import Config, count_of
from engine.models.spec import ImageEncoder


def reduction(config: Config) -> int:
    """Return how many pixels of a side are one position of the latents. Raises TypeError."""
    return int(2 ** (len(config.get("dim_mult", (1, 2, 4, 4))) - 1))


def image_encoder(config: Config, resolution: int, width: int) -> ImageEncoder:
    """Return the footprint of the VAE for images of `resolution` x `resolution`, its values of `width` bytes.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the configuration is not that of such a VAE.
    """
    first, latent = int(config.get("base_dim", 96)), int(config.get("z_dim", 16))
    widths = [first * int(factor) for factor in config.get("dim_mult", (1, 2, 4, 4))]
    blocks, image = count_of(config.get("num_res_blocks", 2)), int(config.get("input_channels", 3))
    times = [bool(item) for item in config.get("temperal_downsample", (False, True, True))]
    parameters = (
        _encoder(widths, times, blocks, image, latent)
        + _decoder(widths, times, blocks, image, latent)
        + _conv(2 * latent, 2 * latent, 1)
        + _conv(latent, latent, 1)
    )
    return ImageEncoder(
        parameters=parameters,
        weight_bytes=parameters * width,
        # At full resolution each convolution of a block keeps its input for the next frame, though there is none.
        encode_bytes=(6 + 2 * blocks) * first * resolution**2 * width,
        decode_bytes=(14 + 2 * blocks) * first * resolution**2 * width,
    )


def _encoder(widths: list[int], times: list[bool], blocks: int, image: int, latent: int) -> int:
    count, last = _conv(image, widths[0], 27), widths[0]
    for level, width in enumerate(widths):
        count += _resnet(last, width) + (blocks - 1) * _resnet(width, width)
        if level < len(widths) - 1:
            count += _conv(width, width, 9) + (_conv(width, width, 3) if times[level] else 0)
        last = width
    return count + _middle(last) + last + _conv(last, 2 * latent, 27)


def _decoder(widths: list[int], times: list[bool], blocks: int, image: int, latent: int) -> int:
    last = widths[-1]
    count = _conv(latent, last, 27) + _middle(last)
    for level, width in enumerate(reversed(widths)):
        count += _resnet(last, width) + blocks * _resnet(width, width)
        last = width
        if level < len(widths) - 1:
            count += _conv(width, width // 2, 9) + (_conv(width, 2 * width, 3) if times[::-1][level] else 0)
            last = width // 2
    return count + last + _conv(last, image, 27)


def _conv(inputs: int, outputs: int, positions: int) -> int:
    """Return the parameters of a convolution whose kernel has so many positions."""
    return inputs * outputs * positions + outputs


def _resnet(inputs: int, outputs: int) -> int:
    shortcut = _conv(inputs, outputs, 1) if inputs != outputs else 0
    return inputs + _conv(inputs, outputs, 27) + outputs + _conv(outputs, outputs, 27) + shortcut


def _middle(width: int) -> int:
    return 2 * _resnet(width, width) + width + _conv(width, 3 * width, 1) + _conv(width, width, 1)

"""Make what `make demo-video` trains with: moving emoji as clips, and a tiny LTX-Video to train on them.

Usage: make_base.py FOLDER. It writes FOLDER/base (a pipeline in Diffusers' layout), FOLDER/day, FOLDER/sunset and
FOLDER/sunset-heldout (clips with captions). Nothing is downloaded. The pipeline's VAE is a principal component
analysis of the clips, written as the weights of LTX-Video's layers; the text encoder and the transformer have random
weights: the demo trains the transformer first (`pretrain.json`), and then a LoRA for it (`task.json`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel
from PIL import Image, ImageDraw
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

EMOJI: Final = Path(__file__).parents[2] / "assets" / "datasets" / "emoji-high-contrast"
DIRECTIONS: Final = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DAY: Final = ((255, 255, 255), (40, 40, 40))
SUNSET: Final = ((255, 214, 150), (200, 30, 60))
"""The colours of the background and of the emoji."""
SIDE, FRAMES, RATE = 64, 9, 8
CHANNELS: Final = 96
"""Channels of the latents: the number of principal components of a piece of 32 x 32 pixels and 8 frames."""
WIDTH: Final = 2 * CHANNELS + 1
"""Channels of the VAE's layers: the components, their negatives, and a constant."""
PATCH: Final = 4
LARGE: Final = 1e4
"""The constant: much larger than all components, so that it alone decides by what RMSNorm divides."""


def clip(name: str, direction: str, colours: tuple[tuple[int, int, int], tuple[int, int, int]]) -> npt.NDArray[Any]:
    """Return a clip of an emoji that moves: uint8, shape (frames, height, width, 3)."""
    with Image.open(EMOJI / f"{name}.png") as image:
        shape = silhouette(image.convert("L").resize((32, 32)))
    background, foreground = colours
    dx, dy = DIRECTIONS[direction]
    frames = []
    for k in range(FRAMES):
        way = (2 * k / (FRAMES - 1) - 1) * (SIDE - 32) / 2
        frame = Image.new("RGB", (SIDE, SIDE), background)
        frame.paste(foreground, (round(16 + dx * way), round(16 + dy * way)), shape)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def silhouette(grey: Image.Image) -> Image.Image:
    """Return the filled outline of a dark drawing on white: what is not connected with the border."""
    wide = Image.new("L", (grey.width + 2, grey.height + 2), 255)
    wide.paste(grey, (1, 1))
    wide = wide.point(lambda value: 255 if value > 200 else 0)
    ImageDraw.floodfill(wide, (0, 0), 128)
    return wide.crop((1, 1, grey.width + 1, grey.height + 1)).point(lambda value: 0 if value == 128 else 255)


def write_clips(folder: Path, names: list[str], when: str) -> list[npt.NDArray[Any]]:
    """Write a clip of each emoji in each direction with its caption beside it, and return the clips."""
    folder.mkdir(parents=True)
    clips = []
    for name in names:
        for direction in DIRECTIONS:
            frames = clip(name, direction, SUNSET if when == "sunset" else DAY)
            write_video(folder / f"{name}-{direction}.mkv", frames)
            ending = " at sunset" if when == "sunset" else ""
            article = "an" if name[0] in "aeiou" else "a"
            (folder / f"{name}-{direction}.txt").write_text(f"{article} {name} moves {direction}{ending}\n")
            clips.append(frames)
    return clips


def write_video(path: Path, frames: npt.NDArray[Any]) -> None:
    """Write frames without loss."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=RATE, options={"flags": "+bitexact"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))


@torch.no_grad()
def make_vae(clips: torch.Tensor) -> AutoencoderKLLTXVideo:
    """Return LTX-Video's VAE with weights that are the principal components of the clips.

    Each of the three levels joins 2 x 2 positions and 2 frames, and keeps the components with the largest variance.
    The VAE's last layers normalise (RMSNorm) and bend (SiLU) their input x; as silu(x) - silu(-x) = x, they are linear
    if they get each component and its negative, and one channel so large that the norm is always the same.

    Args:
        clips: float32 from -1 to 1, shape (clips, 3, frames, height, width).
    """
    vae = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(WIDTH,) * 3,
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        layers_per_block=(0,) * 4,
        decoder_layers_per_block=(0,) * 4,
        spatio_temporal_scaling=(True,) * 3,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        downsample_type=("conv",) * 3,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        patch_size=PATCH,
    )
    for parameter in vae.parameters():
        parameter.zero_()
    encoder, decoder = vae.encoder, vae.decoder
    colours = 3 * PATCH * PATCH
    scale = LARGE / WIDTH**0.5
    encoder.conv_in.conv.weight[:colours, :, 2, 1, 1] = torch.eye(colours)
    decoder.conv_in.conv.weight[:CHANNELS, :, 1, 1, 1] = torch.eye(CHANNELS)
    count, _, frames, height, width = clips.shape
    values = clips.reshape(count, 3, frames, height // PATCH, PATCH, width // PATCH, PATCH)
    values = values.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)
    for level in range(3):
        values = _make_level(vae, level, values)
    encoder.conv_out.conv.weight[:CHANNELS, :CHANNELS, 2, 1, 1] = scale * torch.eye(CHANNELS)
    encoder.conv_out.conv.weight[:CHANNELS, CHANNELS:-1, 2, 1, 1] = -scale * torch.eye(CHANNELS)
    encoder.conv_out.conv.bias[CHANNELS] = -30.0  # the logarithm of the variance of the latents: hardly any
    decoder.conv_out.conv.weight[:, :colours, 1, 1, 1] = scale * torch.eye(colours)
    decoder.conv_out.conv.weight[:, colours : 2 * colours, 1, 1, 1] = -scale * torch.eye(colours)
    vae.latents_mean.copy_(values.mean((0, 2, 3, 4)))
    vae.latents_std.copy_(values.std((0, 2, 3, 4)))
    return vae


def _make_level(vae: AutoencoderKLLTXVideo, level: int, values: torch.Tensor) -> torch.Tensor:
    """Set the weights of one level of the encoder and of the decoder, and return what the encoder's level gives."""
    count, channels, frames, height, width = values.shape
    is_last = level == 2
    padded = torch.cat([values[:, :, :1], values], 2)  # the encoder repeats the first frame
    pieces = padded.reshape(count, channels, (frames + 1) // 2, 2, height // 2, 2, width // 2, 2)
    rows = pieces.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(0, 3)
    _, vectors = torch.linalg.eigh((rows.T @ rows).double())
    kept = min(CHANNELS if is_last else WIDTH, rows.shape[1])
    basis = vectors[:, -kept:].flip(1).T.to(torch.float32)
    down = vae.encoder.down_blocks[level].downsamplers[0].conv
    down.weight[:kept, :channels, 1:, 1:, 1:] = basis.reshape(kept, channels, 2, 2, 2)
    up = vae.decoder.up_blocks[2 - level].upsamplers[0].conv.conv
    weight = torch.zeros(WIDTH, 2, 2, 2, WIDTH)
    weight[:channels, ..., :kept] = basis.T.reshape(channels, 2, 2, 2, kept)
    if is_last:  # the encoder's last level
        down.weight[kept : 2 * kept] = -down.weight[:kept]
        down.bias[2 * kept] = LARGE
    if level == 0:  # the decoder's last level
        weight[channels : 2 * channels] = -weight[:channels]
        up.bias.reshape(WIDTH, 8)[2 * channels] = LARGE
    up.weight[:, :, 1, 1, 1] = weight.reshape(8 * WIDTH, WIDTH)
    return (rows @ basis.T).reshape(count, (frames + 1) // 2, height // 2, width // 2, kept).permute(0, 4, 1, 2, 3)


def make_pipeline(vae: AutoencoderKLLTXVideo, words: list[str]) -> LTXPipeline:
    """Return the pipeline; the text encoder's vocabulary is `words`."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *((f"▁{word}", -5.0) for word in words)]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, extra_special_tokens=[], model_max_length=32)
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=len(vocabulary), d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4)
    ).eval()
    transformer = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=4,
        attention_head_dim=32,
        cross_attention_dim=128,
        num_layers=4,
        caption_channels=64,
    )
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def main(folder: Path) -> None:
    torch.manual_seed(0)
    names = [path.stem for path in sorted(EMOJI.glob("*.png")) if "-" not in path.stem]
    day, sunset = names[:24], names[:24:2]
    clips = write_clips(folder / "day", day, "day") + write_clips(folder / "sunset", sunset, "sunset")
    write_clips(folder / "sunset-heldout", names[1:4:2], "sunset")
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).to(torch.float32) / 127.5 - 1.0
    words = ["a", "an", "moves", *DIRECTIONS, "at", "sunset", *names]
    make_pipeline(make_vae(pixels), words).save_pretrained(folder / "base")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""CogVideoX (Yang et al. 2024, arXiv:2408.06072): 2B, 5B, and version 1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from transformers import T5EncoderModel

from engine.models.families.cogvideox.spec import SPEC, TEXT
from engine.models.family import LoadArgs, Tensors
from engine.models.parts.t5 import encoder as t5
from engine.models.parts.transformer_family import VAE, TransformerFamily
from engine.models.parts.vae import CastsLatents
from engine.models.parts.video_vae import VideoLatents
from engine.task.plan.extent import Extent

STATES = "encoder_hidden_states"


class ClipVAE(CastsLatents, AutoencoderKLCogVideoX):  # type: ignore[misc]  # Diffusers is not typed
    """An `AutoencoderKLCogVideoX` that decodes latents of any dtype."""


class CogVideoXLatents(VideoLatents):
    """A VAE whose latents begin with copies of their first frame where the transformer needs more frames.

    The transformer of version 1.5 takes two frames of latents at a time. Its pipeline draws the missing frames before
    the others, and drops them; CogVideo's own trainer fills them with the first frame
    (finetune/models/cogvideox_t2v/lora_trainer.py in zai-org/CogVideo).
    """

    def __init__(self, vae: Any, patch_frames: int) -> None:
        """
        Args:
            vae: Diffusers' module.
            patch_frames: how many frames of latents the transformer takes at a time.
        """
        config = vae.config
        super().__init__(
            vae,
            channels=config.latent_channels,
            side=2 ** (len(config.block_out_channels) - 1),
            frames=int(config.temporal_compression_ratio),
            # As the pipeline decodes, also with `invert_scale_latents`, which is about the images of image-to-video.
            scale=config.scaling_factor,
        )
        self._patch_frames = patch_frames

    def shape(self, extent: Extent) -> tuple[int, ...]:
        """Return the shape (channels, frames, height, width) of the latents of a clip, with the frames filled in."""
        channels, frames, height, width = super().shape(extent)
        return (channels, frames + -frames % self._patch_frames, height, width)

    def sample(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Return drawn latents as in `VideoLatents`, in the shape of `noise`, which has the frames filled in."""
        missing = noise.shape[1] - moments["mean"].shape[1]
        latents = super().sample(moments, noise[:, missing:])
        return torch.cat([latents[:, :1].expand(-1, missing, -1, -1), latents], dim=1)


class CogVideoX(TransformerFamily):
    """A loaded CogVideoX base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar[Mapping[str, Any]] = {
        TEXT: T5EncoderModel,
        VAE: ClipVAE,
        SPEC.denoiser: CogVideoXTransformer3DModel,
    }

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        self._tokenizer = t5.load_tokenizer(args, "tokenizer")
        # Not from the transformer itself, which is not in memory while clips are encoded.
        self._patch_frames = args.config(SPEC.denoiser).get("patch_size_t") or 1

    @property
    def latents(self) -> CogVideoXLatents:
        return CogVideoXLatents(self.parts[VAE], self._patch_frames)

    def encode_fixed(self, caption: str) -> Tensors:
        """Return `encoder_hidden_states` (tokens, T5's width)."""
        ids = t5.token_ids(self._tokenizer, caption, self._args.caption_tokens)
        return {STATES: t5.encode(self.parts[TEXT], ids)}

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the velocity; the transformer has the frames before the channels."""
        prediction: torch.Tensor = self.denoiser(
            hidden_states=noisy.transpose(1, 2),
            encoder_hidden_states=conditioning[STATES],
            timestep=timesteps,
            image_rotary_emb=self._rotations(noisy),
        ).sample
        return prediction.transpose(1, 2)

    def _rotations(self, noisy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the cosines and sines of each token's position; None for 2B, which adds a table of positions.

        They are those of the pipeline (`_prepare_rotary_positional_embeddings`), for latents of this size.
        """
        config = self.denoiser.config
        if not config.use_rotary_positional_embeddings:
            return None
        frames, height, width = noisy.shape[2:]
        side, depth = config.patch_size, config.patch_size_t
        grid, usual = (height // side, width // side), (config.sample_height // side, config.sample_width // side)
        own: dict[str, Any]
        if depth is None:
            own = {"crops_coords": get_resize_crop_region_for_grid(grid, *usual[::-1]), "temporal_size": frames}
        else:
            own = {"crops_coords": None, "temporal_size": frames // depth, "grid_type": "slice", "max_size": usual}
        cosines, sines = get_3d_rotary_pos_embed(config.attention_head_dim, grid_size=grid, device=noisy.device, **own)
        return cosines, sines

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        return {"prompt_embeds": encoded[STATES].to(self.denoiser.dtype)}


def load(args: LoadArgs) -> CogVideoX:
    """Return the family. Its parts are loaded when they are needed. Raises ModelError."""
    return CogVideoX(args)

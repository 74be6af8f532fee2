"""The toy family's torch part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional

from engine.models.family import Batch, Drawing, LoadArgs, Tensors
from engine.models.loading.modules import load_module, move_frozen
from engine.models.objectives import registry as objectives
from engine.models.objectives.diffusion.sampler import load_scheduler
from engine.models.objectives.losses import training_loss
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from tests.support.toy_family.spec import CHANNELS, SHRINKS, SPEC

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry


class TextEncoder(ModelMixin, ConfigMixin):
    """An embedding for each byte, and a layer on top."""

    @register_to_config
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.mix = nn.Linear(width, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.mix(self.embedding(ids))


class Block(nn.Module):
    """Self-attention with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.norm(tokens)
        heads = [layer(normed).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v)]
        return tokens + self.to_out[0](functional.scaled_dot_product_attention(*heads).squeeze(1))


class ToyTransformer(ModelMixin, ConfigMixin):
    """A denoiser whose tokens are the text's and the latents' places."""

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, width: int, num_layers: int, text_width: int) -> None:
        super().__init__()
        self.project_in, self.project_out = nn.Linear(CHANNELS, width), nn.Linear(width, CHANNELS)
        self.project_text, self.project_time = nn.Linear(text_width, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(num_layers))
        self.gradient_checkpointing = False

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        time = self.project_time((timesteps[:, None] / 1000).to(latents.dtype))
        places = self.project_in(latents.flatten(2).transpose(1, 2)) + time[:, None]
        tokens = torch.cat([self.project_text(text), places], dim=1)
        for block in self.blocks:
            is_recomputed = self.gradient_checkpointing and torch.is_grad_enabled()
            tokens = self._gradient_checkpointing_func(block, tokens) if is_recomputed else block(tokens)
        return self.project_out(tokens[:, text.shape[1] :]).transpose(1, 2).reshape(latents.shape)


class Toy:
    """A loaded toy; methods as in `Family`."""

    spec = SPEC

    def __init__(self, args: LoadArgs) -> None:
        self.scheduler = load_scheduler(args)
        self.text_encoders = {"text_encoder": load_module(TextEncoder, args, "text_encoder")}
        self.denoiser = load_module(ToyTransformer, args, "transformer").to(args.device)
        self.parts = {**self.text_encoders, "transformer": self.denoiser}
        self.objective = objectives.load(SPEC.objective, self.scheduler.config, args)
        self._length = args.caption_tokens
        self._dtype = args.dtype

    def latent_shape(self, extent: Extent) -> tuple[int, ...]:
        return (CHANNELS, extent.height // SHRINKS, extent.width // SHRINKS)

    def encode_pixels(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        image = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 127.5 - 1.0
        mean = functional.avg_pool2d(image, SHRINKS)
        return {"mean": mean, "logvar": torch.full_like(mean, -4.0)}

    @torch.no_grad()
    def encode_caption(self, caption: str) -> Tensors:
        encoder = self.text_encoders["text_encoder"]
        ids = {name: ids[None].to(encoder.device) for name, ids in self.tokenize(caption).items()}
        return {name: tensor[0].cpu() for name, tensor in self.embed(ids).items()}

    def encode_fixed(self, caption: str) -> Tensors:
        return {}  # all text encoders can be trained

    def tokenize(self, caption: str) -> Tensors:
        return {"ids": torch.tensor([*caption.encode()[: self._length].ljust(self._length, b"\0")])}

    def embed(self, tokens: Tensors) -> Tensors:
        return {"text": self.text_encoders["text_encoder"](tokens["ids"])}

    def place(self, geometry: Geometry) -> Tensors:
        return {}

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        return moments["mean"] + torch.exp(0.5 * moments["logvar"]) * noise

    def loss(self, batch: Batch, options: LossOptions) -> torch.Tensor:
        def denoise(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.denoiser(noisy, time, batch.conditioning["text"])

        return training_loss(self.objective, denoise, batch, options, self._dtype)

    def move_encoders(self, device: torch.device) -> None:
        for encoder in self.text_encoders.values():
            move_frozen(encoder, device)

    def remember(self, prompts: Mapping[str, Tensors]) -> None:
        pass  # the text encoder stays in memory

    @torch.no_grad()
    def draw(
        self, drawing: Drawing, generator: torch.Generator, after_step: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        latents = torch.randn(1, *self.latent_shape(Extent(*drawing.size)), generator=generator).to(self._dtype)
        text = self.encode_caption(drawing.prompt)["text"][None]
        self.scheduler.set_timesteps(drawing.num_inference_steps)
        for timestep in self.scheduler.timesteps:
            prediction = self.denoiser(latents, timestep[None], text)
            latents = self.scheduler.step(prediction, timestep, latents).prev_sample
            after_step()
        pixels = functional.interpolate(latents.float(), scale_factor=SHRINKS).permute(0, 2, 3, 1)
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()

    def webui_name(self, component: str, module: str) -> str:
        return f"lora_{component}_{module}".replace(".", "_")


def load(args: LoadArgs) -> Toy:
    """Load all parts."""
    return Toy(args)

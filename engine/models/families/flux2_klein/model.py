"""FLUX.2 [klein] (Black Forest Labs 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen3ForCausalLM

from engine.models.configs import read_json
from engine.models.families.flux2_klein.spec import SPEC, TEXT_LAYERS
from engine.models.family import Drawing, LoadArgs, Tensors
from engine.models.parts.packing import SIDE, pack
from engine.models.parts.qwen import encoder as qwen
from engine.models.parts.qwen.checks import TEXT
from engine.models.parts.qwen.tokens import CHAT_WITHOUT_THINKING
from engine.models.parts.transformer_family import VAE, TransformerFamily
from engine.models.parts.vae import CastsLatents, ImageModes
from engine.task.plan.extent import Extent


class KleinVAE(CastsLatents, AutoencoderKLFlux2):  # type: ignore[misc]  # Diffusers is not typed
    """An `AutoencoderKLFlux2` that decodes latents of any dtype."""


class KleinLatents(ImageModes):
    """A VAE whose latents are packed 2 x 2 into channels, and normalised by stored statistics of a batch norm."""

    def shape(self, extent: Extent) -> tuple[int, ...]:
        channels, rows, columns = super().shape(extent)
        return (channels * SIDE**2, rows // SIDE, columns // SIDE)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """Encode one image, uint8 (H, W, 3), to `mean`, packed and normalised: float32, on the CPU."""
        mean = super().encode(pixels)["mean"]
        _, height, width = mean.shape
        tokens = pack(mean[None])[0]  # (rows x columns, channels x 4)
        norm = self._vae.bn
        deviation = torch.sqrt(norm.running_var + self._vae.config.batch_norm_eps)
        normal = (tokens - norm.running_mean.cpu()) / deviation.cpu()
        return {"mean": normal.T.reshape(-1, height // SIDE, width // SIDE).contiguous()}

    def normalise(self, drawn: torch.Tensor) -> torch.Tensor:
        """Return the latents as they are: `encode` has normalised them."""
        return drawn


class Flux2Klein(TransformerFamily):
    """A loaded FLUX.2 [klein] base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar[Mapping[str, Any]] = {
        TEXT: Qwen3ForCausalLM,
        VAE: KleinVAE,
        SPEC.denoiser: Flux2Transformer2DModel,
    }
    patch = 1  # the latents are packed already

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        self.tokenizer = qwen.load_tokenizer(args)
        self._is_distilled = bool(read_json(args.folder / "model_index.json").get("is_distilled", False))

    @property
    def latents(self) -> KleinLatents:
        return KleinLatents(self.parts[VAE])

    def encode_fixed(self, caption: str) -> Tensors:
        """Return the states of three layers side by side, those of the padding too, as the pipeline does."""
        states, _ = qwen.encode(
            self.parts[TEXT],
            self.tokenizer,
            CHAT_WITHOUT_THINKING.format(caption),
            length=self._args.caption_tokens,
            layers=TEXT_LAYERS,
        )
        return {qwen.STATES: states}

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        states = conditioning[qwen.STATES]
        height, width = noisy.shape[-2:]
        tokens: torch.Tensor = self.denoiser(
            hidden_states=noisy.flatten(2).mT,
            timestep=sigmas,
            encoder_hidden_states=states,
            img_ids=_positions(height, width, 1, noisy.device),
            txt_ids=_positions(1, 1, states.shape[1], noisy.device),
        ).sample
        return tokens.mT.reshape(len(noisy), -1, height, width)

    @property
    def pipeline_settings(self) -> dict[str, Any]:
        return {"is_distilled": self._is_distilled}

    def prompts(self, drawing: Drawing) -> dict[str, str]:
        """See `TransformerFamily.prompts`. The negative prompt is always empty, and a distilled model has none."""
        is_guided = drawing.guidance_scale > SPEC.no_guidance and not self._is_distilled
        return {"": drawing.prompt, **({"negative_": ""} if is_guided else {})}

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        return {"prompt_embeds": encoded[qwen.STATES]}


def _positions(height: int, width: int, length: int, device: torch.device) -> torch.Tensor:
    """Return (0, row, column, place in the text) of each token: int64, shape (tokens, 4)."""
    sizes = (1, height, width, length)
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))


def load(args: LoadArgs) -> Flux2Klein:
    """Load the tokenizer and the scheduler; the parts with weights are loaded when needed. Raises ModelError."""
    return Flux2Klein(args)

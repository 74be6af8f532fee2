"""The specification of FLUX.2 [klein] (Black Forest Labs, 2026). No torch."""

from __future__ import annotations

from typing import Final

from engine.core.errors import ModelError
from engine.models.objectives.objective import TargetType
from engine.models.parts.config_checks import require_bounds, require_rotations, require_size, whole_tokens
from engine.models.parts.footprints import language_model, transformer_model
from engine.models.parts.footprints.transformers import flux2
from engine.models.parts.qwen import tokens
from engine.models.parts.qwen.checks import TEXT, require_states
from engine.models.spec import CaptionTokens, Configs, DrawingDefaults, FamilySpec, Footprint, Workload

TEXT_LAYERS: Final = (9, 18, 27)
"""The layers of the language model whose states are the text (`hidden_states_layers` of Diffusers' pipeline)."""
_TARGETS: Final = r".*\.(to_q|to_k|to_v|to_out\.0|to_qkv_mlp_proj)|single_transformer_blocks\.\d+\.attn\.to_out"
"""The layers that get an adapter, as in Diffusers' trainer (examples/dreambooth/train_dreambooth_lora_flux2_klein.py).
In blocks of two streams `to_out` is a list of layers, in others it is a layer."""
_CHAT_TOKENS: Final = 12
"""The tokens of `tokens.CHAT_WITHOUT_THINKING`."""
_TOKEN_SIDE: Final = 16
"""Pixels of a side in one token: 2 x 2 positions of the latents, of 8 x 8 pixels each."""
_POSITIONS: Final = 4
"""Positions of the latents in one token."""


def check(config: Configs) -> None:
    """Refuse other models with the classes of FLUX.2 [klein]: FLUX.2 [dev], parts of others.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    transformer = config("transformer")
    require_bounds(config, "transformer", "vae", "text_encoder")
    if transformer.get("guidance_embeds", True) is not False:
        raise ModelError(
            "the base model's transformer is distilled on guidance: it is that of FLUX.2 [dev], which cannot be "
            "trained; FLUX.2 [klein] can"
        )
    channels = require_size(config, "vae", "latent_channels", 32) * _POSITIONS
    taken = require_size(config, "transformer", "in_channels", 128)
    given, patch = transformer.get("out_channels") or taken, transformer.get("patch_size", 1)
    if not channels == taken == given or patch != 1 or config("vae").get("patch_size", [2, 2]) != [2, 2]:
        raise ModelError(
            f"the base model's transformer takes tokens of {taken} values and gives {str(given)[:40]}, its VAE's "
            f"latents have {channels}: these parts are not those of FLUX.2 [klein]"
        )
    require_rotations(config, axes=4)
    require_states(config, "joint_attention_dim", 15360, TEXT_LAYERS)


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for FLUX.2 [klein]. Modules keep Diffusers' names."""
    return {
        "modelspec.architecture": "flux-2-klein/lora",
        "modelspec.implementation": "diffusers",
        "ss_base_model_version": "flux2",
    }


def _footprint(config: Configs, workload: Workload) -> Footprint:
    encoders = {TEXT: language_model.text_encoder}
    return transformer_model.footprint(config, workload, transformer=flux2.transformer, encoders=encoders)


SPEC: Final = FamilySpec(
    pipeline="Flux2KleinPipeline",
    module="engine.models.families.flux2_klein.model",
    other_pipelines={
        "Flux2Pipeline": "FLUX.2 [dev], whose text encoder has 24 billion parameters",
        "Flux2KleinKVPipeline": "FLUX.2 [klein] for editing images",
        "Flux2KleinInpaintPipeline": "an inpainting model",
    },
    components=("scheduler", "tokenizer", "text_encoder", "vae", "transformer"),
    weighted=("text_encoder", "vae", "transformer"),
    classes={
        TEXT: ("Qwen3ForCausalLM",),
        "vae": ("AutoencoderKLFlux2",),
        "transformer": ("Flux2Transformer2DModel",),
    },
    denoiser="transformer",
    text_encoders=(),
    fixed_text_encoders=("text_encoder",),
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    lora_targets=_TARGETS,
    text_lora_targets=(),
    text_root=None,
    objective="flow",
    usual_sampling="logit_normal",
    medium="image",
    takes_negative_prompt=False,
    argument_names={"prompt": "prompt"},  # the first argument is an image
    check=check,
    check_size=whole_tokens(_TOKEN_SIDE),
    token_side=_TOKEN_SIDE,
    webui_metadata=webui_metadata,
    token_counter=tokens.counter(tokens.CHAT_WITHOUT_THINKING),
    caption_tokens=CaptionTokens(usual=512, most=512, step=1, least=_CHAT_TOKENS + 1),
    schedulers=frozenset({"FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"}),
    drawing=DrawingDefaults(guidance_scale=1.0, num_inference_steps=4),
    hub_tags=("flux2", "flux2-diffusers"),
    licences={
        **dict.fromkeys(("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-base-4B"), "apache-2.0"),
        **dict.fromkeys(("black-forest-labs/FLUX.2-klein-9B", "black-forest-labs/FLUX.2-klein-base-9B"), "other"),
    },
    footprint=_footprint,
)

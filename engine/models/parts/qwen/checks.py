"""Check the configuration of a Qwen language model that encodes captions. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.core.errors import ModelError
from engine.models.parts.config_checks import require_bounds, require_size, require_text_width
from engine.models.spec import Configs

TEXT: Final = "text_encoder"


def language_config(config: Configs) -> Mapping[str, Any]:
    """Return the configuration of the language model; one that also sees images has it as a part of its own.

    Raises:
        ModelError: that part is malformed.
    """
    whole = config(TEXT)
    inner = whole.get("text_config", whole)
    if not isinstance(inner, dict):
        raise ModelError(f"the base model's {TEXT}/config.json has no text_config that is an object: download it again")
    return inner


def require_states(config: Configs, key: str, default: int, layers: tuple[int, ...]) -> None:
    """Check that the transformer takes the states of these layers of the language model, side by side.

    Args:
        config: the base model's configurations.
        key: where the transformer's configuration has the width of its text.
        default: that width if the configuration lacks it.
        layers: indices of the layers' states, of which 0 is the embedding of the tokens.

    Raises:
        ModelError: it takes text of another width, the model has too few layers, or a size is malformed.
    """

    def language(component: str) -> Mapping[str, Any]:
        return language_config(config) if component == TEXT else config(component)

    require_bounds(language, TEXT)
    require_bounds(lambda component: config(component).get("vision_config") or {}, TEXT)
    given = require_size(language, TEXT, "hidden_size", 4096) * len(layers)
    require_text_width(config, key, default, given)
    count = require_size(language, TEXT, "num_hidden_layers", 32)
    if count < max(abs(layer) for layer in layers):
        raise ModelError(
            f"the base model's text encoder has {count} layers, the states of layer {max(layers)} are needed: "
            "these parts are of different models"
        )

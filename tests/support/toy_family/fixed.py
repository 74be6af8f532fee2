"""The toy family with a text encoder that is never trained, is loaded when it is needed, and can be freed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch

from engine.models.family import Drawing, LoadArgs, Tensors
from engine.models.lazy_parts import LazyParts
from engine.models.loading import load_module
from engine.models.objectives import registry as objectives
from engine.models.objectives.diffusion.sampler import load_scheduler
from tests.support.toy_family import model, spec

SPEC: Final = replace(spec.SPEC, module=__name__, text_encoders=(), fixed_text_encoders=("text_encoder",))
CLASSES: Final = {"text_encoder": model.TextEncoder, "transformer": model.ToyTransformer}


class FixedToy(model.Toy):
    """A loaded toy; methods as in `Family`."""

    spec = SPEC
    text_encoders: Mapping[str, torch.nn.Module] = {}

    def __init__(self, args: LoadArgs) -> None:
        self.parts = LazyParts(lambda component: load_module(CLASSES[component], args, component))
        self.scheduler = load_scheduler(args)
        self.objective = objectives.load(SPEC.objective, self.scheduler.config, args)
        self._length = args.caption_tokens
        self._dtype = args.dtype
        self._prompts: dict[str, Tensors] = {}

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.parts["transformer"]

    @torch.no_grad()
    def encode_fixed(self, caption: str) -> Tensors:
        ids = super().tokenize(caption)["ids"]
        return {"text": self.parts["text_encoder"](ids[None])[0]}

    def encode_caption(self, caption: str) -> Tensors:
        return self.encode_fixed(caption)

    def tokenize(self, caption: str) -> Tensors:
        return {}

    def remember(self, prompts: Mapping[str, Tensors]) -> None:
        self._prompts |= prompts

    def prompt_states(self, drawing: Drawing) -> torch.Tensor:
        return (self._prompts.get(drawing.prompt) or self.encode_fixed(drawing.prompt))["text"][None]


def load(args: LoadArgs) -> FixedToy:
    """Load no part yet."""
    return FixedToy(args)

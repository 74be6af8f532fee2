"""What an adapter's tensors are called: here, and in the LoRA files of other trainers. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Protocol

from ..errors import CheckpointError
from ..families import DENOISER

DOWN: Final = ".lora_A.weight"
UP: Final = ".lora_B.weight"


class Shaped(Protocol):
    """A tensor, or what a file's header says of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def tensor_names(module: str) -> tuple[str, str]:
    """The names of an adapted module's down and up matrices."""
    return f"{module}{DOWN}", f"{module}{UP}"


_SPELLINGS: Final = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_linear_layer.up.weight": "lora_B",
    "_lora.down.weight": "lora_A",
    "_lora.up.weight": "lora_B",
    "_lora.alpha": "alpha",
    ".alpha": "alpha",
}


def own_key(key: str, components: Collection[str]) -> tuple[str, str]:
    """The component that a key is about, and the rest of the key. Only the oldest files' have no such prefix.

    Raises CheckpointError for a component that is not trained.
    """
    component, _, own = key.partition(".")
    if component not in components:
        advice = "; set train_args.train_text_encoder" if component.startswith("text_encoder") else ""
        raise CheckpointError(f"the LoRA file also adapts {component}, which this task does not train{advice}")
    return component, own


def parse_key(key: str, own: str) -> tuple[str, str]:
    """The module that a key is about, and which of its parts: `lora_A`, `lora_B` or `alpha`. Raises CheckpointError."""
    own = own.replace(".processor.", ".")
    for ending, kind in _SPELLINGS.items():
        if own.endswith(ending):
            module = own.removesuffix(ending)
            # The oldest spelling, `to_out_lora`, leaves out that the projection is the first of a list.
            return (f"{module}.0" if module.endswith(".to_out") else module), kind
    raise CheckpointError(f"the LoRA file's {key} is not in Diffusers' format (lora_A, lora_B); take another file")


def require_fit(tensors: Mapping[str, Shaped], expected: Mapping[str, Shaped]) -> None:
    """Raise CheckpointError unless both have the same names and shapes; names the first that differs."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors:
            raise CheckpointError(f"the checkpoint's LoRA has no {name}, which {_chosen_by(name)} asks for")
        if name not in expected:
            raise CheckpointError(f"the checkpoint's LoRA has {name}, which {_chosen_by(name)} leaves out")
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found == wanted:
            continue
        axis = 0 if name.endswith(DOWN) else 1
        if len(found) == len(wanted) and found[:axis] + found[axis + 1 :] == wanted[:axis] + wanted[axis + 1 :]:
            raise CheckpointError(
                f"the checkpoint's LoRA has rank {found[axis]}, lora.rank is {wanted[axis]} (at {name})"
            )
        raise CheckpointError(f"the checkpoint's LoRA is of another model: {name} is {found}, here {wanted}")


def _chosen_by(name: str) -> str:
    return "lora.target_modules" if name.startswith(f"{DENOISER}.") else "train_args.train_text_encoder"

"""Check a base model's scheduler, and choose the one that draws validation images. Does not import Diffusers.

Training uses only the betas of a scheduler's configuration; validation images are drawn with the scheduler. Some
schedulers need a package that is not installed with this program; a similar scheduler then takes their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from engine.core.errors import ModelError

MAX_TIMESTEPS: Final = 1_000_000
"""Limit on the length of a noise schedule, which is built in memory."""

KNOWN: Final = frozenset(
    {
        "DDIMInverseScheduler",
        "DDIMParallelScheduler",
        "DDIMScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)
"""Diffusers' schedulers that have betas, work with Stable Diffusion's pipelines and need no further package."""

SHIFTED: Final = frozenset({"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"})
"""Diffusers' schedulers that shift the signal-to-noise ratio (`snr_shift_scale`), for pipelines of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitute:
    """A scheduler that takes the place of another one."""

    name: str
    package: str
    """The package that the replaced scheduler needs."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the substitute that override the configuration."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the replaced scheduler that may differ: those of the betas, on which training depends."""


SUBSTITUTES: Final[Mapping[str, Substitute]] = {
    # Both are stochastic DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095); the replaced one seeds its noise itself.
    "DPMSolverSDEScheduler": Substitute(
        name="DPMSolverMultistepScheduler",
        package="torchsde",
        options={"algorithm_type": "sde-dpmsolver++"},
        defaults={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"},
    ),
    # Euler's is the linear multistep method of order one, with the same sigmas (Karras et al. 2022, arXiv:2206.00364).
    "LMSDiscreteScheduler": Substitute(
        name="EulerDiscreteScheduler",
        package="scipy",
        defaults={"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    ),
}

FOR_IMAGES: Final = KNOWN | SUBSTITUTES.keys()
"""The schedulers of base models that Stable Diffusion's pipelines draw with."""

_WITHOUT_BETAS: Final = ("EDM", "FlowMatch", "CosineDPMSolver")
"""Prefixes of the names of schedulers for other kinds of diffusion."""


def drawing(config: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """Return the Diffusers scheduler class that draws validation images, its configuration, and notes to print.

    There is a note on each deviation from the base model's configuration.

    Raises:
        ModelError: it is no scheduler of diffusion with betas.
    """
    name, found, lines = config.get("_class_name"), dict(config), []
    substitute = SUBSTITUTES.get(name) if isinstance(name, str) else None
    if substitute is not None:
        lines.append(
            f"note: the base model's {name} needs {substitute.package}, which is not part of this program: "
            f"validation images are drawn with {substitute.name}; training is the same"
        )
        found = {**substitute.defaults, **found, **substitute.options}
        name = substitute.name
    if not isinstance(name, str) or name not in KNOWN | SHIFTED:
        raise ModelError(_refusal(name))
    if found.get("use_beta_sigmas"):
        lines.append(
            "note: the base model's scheduler has use_beta_sigmas, which needs scipy, which is not part of this "
            "program: validation images are drawn without; training is the same"
        )
        found["use_beta_sigmas"] = False
    return name, found, lines


def num_train_timesteps(config: Mapping[str, Any]) -> int:
    """Return the length of the noise schedule; Diffusers' default if the configuration does not give it.

    Raises:
        ModelError: it is not a positive integer, or above `MAX_TIMESTEPS`.
    """
    return _count(config, "num_train_timesteps", 1000)


def _count(config: Mapping[str, Any], key: str, default: int) -> int:
    found = config.get(key, default)
    if type(found) is not int or not 1 <= found <= MAX_TIMESTEPS:
        raise ModelError(f"the base model's scheduler does not load: {key} is {str(found)[:40]!r}; download it again")
    return found


def drawing_steps(config: Mapping[str, Any]) -> range:
    """Return the numbers of steps in which Diffusers' scheduler can draw. Raises ModelError.

    Fewer than its timesteps: schedulers that start one timestep later would run out of them.
    """
    name, found, _ = drawing(config)
    least, end = 1, num_train_timesteps(config)
    if name == "PNDMScheduler" and not found.get("skip_prk_steps", False):
        least = 4  # Runge-Kutta takes the first steps
    if name in ("LCMScheduler", "TCDScheduler"):
        end = min(end, _count(found, "original_inference_steps", 50) + 1)
    return range(least, end)


def _refusal(name: object) -> str:
    if isinstance(name, str) and name.startswith(_WITHOUT_BETAS):
        return f"the base model's {name} has no betas: EDM and flow matching cannot be trained"
    return (
        f"the base model's scheduler {str(name)[:60]!r} is not a Diffusers scheduler for Stable Diffusion; "
        "a PNDMScheduler or DDIMScheduler with the same betas in its scheduler_config.json can be trained"
    )

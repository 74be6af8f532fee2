"""The table of schedulers against Diffusers itself, with and without its optional packages."""

import ast
import inspect
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import SchedulerMixin

from engine.core.errors import ModelError
from engine.models.objectives.diffusion.schedulers import (
    FOR_IMAGES,
    KNOWN,
    SHIFTED,
    SUBSTITUTES,
    drawing,
    drawing_steps,
)

FOLDER = Path(diffusers.__file__).parent
OTHER_USES = {"RePaintScheduler"}
"""With betas, for inpainting: its steps ask for more than Stable Diffusion's pipelines give."""


def needing_packages():
    """The schedulers that Diffusers has stand-ins for, with the package each stands in for."""
    found = {}
    for path in (FOLDER / "utils").glob("dummy_torch_and_*_objects.py"):
        package = path.stem.removeprefix("dummy_torch_and_").removesuffix("_objects")
        classes = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        found |= {name: package for name in classes if name.endswith("Scheduler")}
    return found


def own_defaults(name):
    """A scheduler's defaults, read from its source: it cannot be imported without its package."""
    for path in (FOLDER / "schedulers").glob("scheduling_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                (init,) = (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
                named = init.args.args[-len(init.args.defaults) :]
                return {a.arg: ast.literal_eval(d) for a, d in zip(named, init.args.defaults, strict=True)}
    raise AssertionError(name)


def test_all_of_diffusers_are_sorted():
    packages, found = needing_packages(), set()
    for name in dir(diffusers):
        cls = getattr(diffusers, name) if name.endswith("Scheduler") else None
        is_scheduler = isinstance(cls, type) and issubclass(cls, SchedulerMixin) and name not in packages
        if is_scheduler and "beta_start" in inspect.signature(cls).parameters:
            found.add(name)
    assert found == KNOWN | SHIFTED | OTHER_USES
    shifting = {name for name in found if "snr_shift_scale" in inspect.signature(getattr(diffusers, name)).parameters}
    assert shifting == SHIFTED
    assert not FOR_IMAGES & SHIFTED, "their steps ask for more than Stable Diffusion's pipelines give"
    with_betas = {name: package for name, package in packages.items() if "beta_start" in own_defaults(name)}
    assert with_betas == {name: one.package for name, one in SUBSTITUTES.items()}
    for name in packages.keys() - SUBSTITUTES.keys():
        with pytest.raises(ModelError, match="has no betas"):
            drawing({"_class_name": name})


@pytest.mark.parametrize("name", list(SUBSTITUTES))
def test_a_substitute_has_the_betas_of_what_it_stands_for(name):
    defaults = own_defaults(name)
    betas = {key: defaults[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    assert SUBSTITUTES[name].defaults == betas and SUBSTITUTES[name].name in KNOWN
    assert drawing({"_class_name": name, "beta_end": 0.5})[1]["beta_end"] == 0.5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, about Diffusers
@pytest.mark.parametrize("name", sorted({*KNOWN, *SUBSTITUTES} - {"DDIMInverseScheduler"}))
def test_each_draws(name):
    found, config, _ = drawing({"_class_name": name, "use_beta_sigmas": True, "steps_offset": 1})
    scheduler = getattr(diffusers, found).from_config(config)
    scheduler.set_timesteps(4)
    latents = torch.ones(1, 4, 8, 8) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(scaled * 0.1, timestep, latents).prev_sample
    assert bool(torch.isfinite(latents).all())


def test_what_is_not_as_the_model_says_is_told():
    assert drawing({"_class_name": "PNDMScheduler"})[2] == []
    lines = drawing({"_class_name": "LMSDiscreteScheduler", "use_beta_sigmas": True})[2]
    assert ["LMSDiscreteScheduler needs scipy" in lines[0], "use_beta_sigmas" in lines[1]] == [True, True]


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"_class_name": "DDIMScheduler"}, range(1, 1000)),
        ({"_class_name": "PNDMScheduler"}, range(4, 1000)),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, range(1, 1000)),
        ({"_class_name": "LCMScheduler"}, range(1, 51)),
        ({"_class_name": "TCDScheduler", "original_inference_steps": 20}, range(1, 21)),
    ],
)
def test_numbers_of_steps_are_those_that_diffusers_takes(config, steps):
    assert drawing_steps(config) == steps
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    for count in (steps.start, steps.stop - 1):
        scheduler.set_timesteps(count)
    for count in {steps.start - 1, steps.stop} - {0, 1000}:
        with pytest.raises(ValueError, match=r"broadcast|smaller"):
            scheduler.set_timesteps(count)


def test_a_malformed_number_of_steps_is_refused():
    with pytest.raises(ModelError, match="original_inference_steps is 'many'"):
        drawing_steps({"_class_name": "LCMScheduler", "original_inference_steps": "many"})

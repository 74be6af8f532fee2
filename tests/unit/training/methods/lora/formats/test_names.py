# ruff: noqa: F811  # a test's arguments are the fixtures imported here
"""LoRA files of kohya's tools, web interfaces and ComfyUI as a start: what Diffusers makes of them, and refusals."""

import copy

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch.nn import Conv2d, Linear

from engine.core.errors import CheckpointError
from engine.models.components.layer_names import names_of
from engine.models.families.sd.spec import SPEC as SD
from engine.models.families.sdxl.spec import SPEC as SDXL
from engine.models.single_file.sgm_names import SgmNames
from engine.task.task import Lora
from engine.training.methods.lora import adapter as lora_module
from engine.training.methods.lora.formats.files import diffusers_state, from_diffusers_file, webui_state
from tests.support import tiny
from tests.support.tolerance import assert_equal_but_for_rounding, depth
from tests.unit.training.methods.lora.test_adapter import (  # noqa: F401  # fixtures among them
    CONVOLUTIONS,
    RANK,
    attach,
    pipeline,
    predict,
    randomise,
    unet,
)

TEXTS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    folder = tiny.build_sdxl(tmp_path_factory.mktemp("xl"))
    return StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)


def names(spec, components):
    layers = {
        name: [key for key, module in root.named_modules() if isinstance(module, Linear | Conv2d)]
        for name, root in components.items()
    }
    return names_of(spec, layers, components["unet"].config)


def sgm(config):
    known = SgmNames.from_config(config)
    return lambda component, module: known.name(module) if component == "unet" else module


def plain(component, module):
    return module


def kohya(adapter, name_of, prefixes):
    """The adapter in kohya's format by the names of `name_of`."""
    return webui_state(adapter, lambda *where: f"{prefixes[where[0]]}_{name_of(*where)}".replace(".", "_"))


def read(tensors, spec, components, known):
    return from_diffusers_file(tensors, spec, components=list(components), names=known)


def assert_read(tensors, adapter, spec, components, known):
    """Alpha equals the rank in these files, so every bit is kept."""
    found, expected = read(tensors, spec, components, known), diffusers_state(adapter)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class TestNames:
    @pytest.mark.parametrize("kind", ["diffusers", "sgm"])
    def test_of_xl_with_both_text_encoders(self, xl, kind):
        parts = {name: copy.deepcopy(getattr(xl, name)) for name in ("unet", *TEXTS)}
        known, naming = names(SDXL, parts), plain if kind == "diffusers" else sgm(xl.unet.config)
        adapter = randomise(lora_module.attach(parts, Lora(rank=RANK, target_modules=CONVOLUTIONS), 0, spec=SDXL))
        tensors = kohya(adapter, naming, {"unet": "lora_unet", **TEXTS})
        assert any("input_blocks" in key for key in tensors) == (kind == "sgm")
        assert_read(tensors, adapter, SDXL, parts, known)

    @pytest.mark.parametrize("text", ["lora_te", "lora_te1"])
    def test_of_a_model_with_one_text_encoder(self, pipeline, text):
        parts = {name: copy.deepcopy(getattr(pipeline, name)) for name in ("unet", "text_encoder")}
        known = names(SD, parts)
        adapter = randomise(lora_module.attach(parts, Lora(rank=RANK), 0, spec=SD))
        tensors = kohya(adapter, plain, {"unet": "lora_unet", "text_encoder": text})
        assert_read(tensors, adapter, SD, parts, known)

    @pytest.mark.parametrize("ending", ["lora_A.weight", "lora_A.default.weight", "lora_down.weight"])
    @pytest.mark.parametrize("naming", ["diffusers", "sgm"])
    def test_with_dots_as_in_comfyui(self, unet, naming, ending):
        name_of = plain if naming == "diffusers" else sgm(unet.config)
        known = names(SD, {"unet": unet})
        adapter = randomise(attach(unet, Lora(rank=RANK, target_modules=CONVOLUTIONS), 0))
        tensors = {}
        for name, tensor in diffusers_state(adapter).items():
            module, matrix = name.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
            own = ending if matrix == "lora_A" else ending.replace("_A", "_B").replace("down", "up")
            tensors[f"diffusion_model.{name_of('unet', module)}.{own}"] = tensor
        assert_read(tensors, adapter, SD, ["unet"], known)

    def test_every_layer_has_names_of_its_own(self, xl):
        parts = {name: getattr(xl, name) for name in ("unet", *TEXTS)}
        known = names(SDXL, parts)
        layers = [m for root in parts.values() for m in root.modules() if isinstance(m, Linear | Conv2d)]
        assert len(set(known.values())) == len(layers) and set(TEXTS) < {name.split(".")[0] for name in known.values()}


ALPHAS = (0.5, 1.0, 3.0)
LORAS = [
    Lora(rank=RANK, target_modules=CONVOLUTIONS),
    Lora(rank=7, alpha=2, init_lora_weights="gaussian", target_modules=CONVOLUTIONS),
]


class TestRanksAndAlphas:
    @pytest.fixture
    def given(self, pipeline):
        """A file as trainers write it: a rank and an alpha for each layer."""
        adapter = randomise(attach(copy.deepcopy(pipeline.unet), Lora(rank=RANK, target_modules=CONVOLUTIONS), 0))
        tensors = kohya(adapter, plain, {"unet": "lora_unet"})
        for number, key in enumerate(sorted(key for key in tensors if key.endswith(".alpha"))):
            stem, rank = key.removesuffix(".alpha"), 1 + number % RANK
            tensors[f"{stem}.lora_down.weight"] = tensors[f"{stem}.lora_down.weight"][:rank].contiguous()
            tensors[f"{stem}.lora_up.weight"] = tensors[f"{stem}.lora_up.weight"][:, :rank].contiguous()
            tensors[key] = torch.tensor(ALPHAS[number % 3])
        return tensors

    @pytest.mark.parametrize("lora", LORAS, ids=lambda lora: f"rank {lora.rank}")
    def test_diffusers_predicts_the_same_with_the_file(self, pipeline, given, lora, tmp_path):
        """Of one alpha: Diffusers takes the most common one for all layers of such a file."""
        given |= {key: torch.tensor(3.0) for key in given if key.endswith(".alpha")}
        safetensors.torch.save_file(given, tmp_path / "lora.safetensors")
        loaded = StableDiffusionPipeline(
            **pipeline.components | {"unet": copy.deepcopy(pipeline.unet)}, requires_safety_checker=False
        )
        loaded.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        self.assert_predicts(pipeline, given, lora, loaded.unet)

    @pytest.mark.parametrize("lora", LORAS, ids=lambda lora: f"rank {lora.rank}")
    def test_each_alpha_counts_as_in_kohyas_tools(self, pipeline, given, lora):
        """W + alpha / rank x B·A: `merge_to` in networks/lora.py of sd-scripts."""
        merged = copy.deepcopy(pipeline.unet)
        for key, module in names(SD, {"unet": merged}).items():
            if f"{key}.alpha" in given:
                down, up = (given[f"{key}.lora_{matrix}.weight"] for matrix in ("down", "up"))
                layer = merged.get_submodule(module.removeprefix("unet."))
                change = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
                layer.weight.data += change * (given[f"{key}.alpha"] / len(down))
        self.assert_predicts(pipeline, given, lora, merged)

    def assert_predicts(self, pipeline, given, lora, expected):
        own = copy.deepcopy(pipeline.unet)
        known = names(SD, {"unet": own})
        adapter = attach(own, lora, 0)
        adapter.warm_start(read(given, SD, ["unet"], known))
        assert (predict(own) - predict(pipeline.unet)).abs().max() > 1e-3
        assert_equal_but_for_rounding(predict(own), predict(expected), operations=depth(own))

    def test_added_ranks_have_no_effect_and_can_be_trained(self, unet, given):
        known = names(SD, {"unet": unet})
        adapter = attach(unet, Lora(rank=2 * RANK, target_modules=CONVOLUTIONS), 0)
        adapter.warm_start(read(given, SD, ["unet"], known))
        for name, parameter in adapter.parameters.items():
            axis = int("lora_B" in name)
            added = parameter.narrow(axis, RANK, RANK)
            assert bool((added == 0).all()) == bool(axis)

    def test_a_larger_rank_is_refused_with_the_one_that_is_needed(self, unet, given):
        known = names(SD, {"unet": unet})
        adapter = attach(unet, Lora(rank=2, target_modules=CONVOLUTIONS), 0)
        with pytest.raises(CheckpointError, match=rf"rank {RANK}, but lora.rank is 2 \(at .*set it to {RANK} or more"):
            adapter.warm_start(read(given, SD, ["unet"], known))

    def test_matrices_that_do_not_go_together(self, unet, given):
        known = names(SD, {"unet": unet})
        key = next(key for key in given if key.endswith("to_q.lora_up.weight"))
        given[key] = torch.cat([given[key]] * 2, dim=1)
        adapter = attach(unet, Lora(rank=2 * RANK, target_modules=CONVOLUTIONS), 0)
        with pytest.raises(CheckpointError, match=r"matrices of two ranks for unet\..*to_q"):
            adapter.warm_start(read(given, SD, ["unet"], known))

    def test_a_layer_that_the_task_does_not_adapt_is_named(self, unet, given):
        known = names(SD, {"unet": unet})
        adapter = attach(unet, Lora(rank=RANK, target_modules=("to_q",)), 0)
        with pytest.raises(CheckpointError, match=r"which lora\.target_modules excludes"):
            adapter.warm_start(read(given, SD, ["unet"], known))

"""Names of the other code base, against Diffusers' own reading of them and against the published model's."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft

from engine.models.families.sdxl.spec import SPEC
from engine.models.single_file.sgm_names import SgmNames
from engine.training.methods.lora.adapter import find_targets
from tests.support.real_shapes import XL_BASE_UNET, xl_base_unet


def names_of(unet):
    return SgmNames.from_config(unet.config)


def layers(unet):
    return [name for name, part in unet.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]


def read_back(unet, modules):
    """What Diffusers makes of a web interface's file with one number for each of these modules: module -> number."""
    file = {}
    for number, module in enumerate(modules):
        name = "lora_unet_" + names_of(unet).name(module).replace(".", "_")
        assert f"{name}.alpha" not in file, "two modules of one name"
        for part in ("lora_down", "lora_up"):
            file[f"{name}.{part}.weight"] = torch.full((1, 1), float(number))
        file[f"{name}.alpha"] = torch.tensor(1.0)
    state, _ = StableDiffusionXLPipeline.lora_state_dict(file, unet_config=unet.config)
    state = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in state.items()})
    down = {k.removesuffix(".lora_A.weight"): value.item() for k, value in state.items() if "lora_A" in k}
    up = {k.removesuffix(".lora_B.weight"): value.item() for k, value in state.items() if "lora_B" in k}
    assert down == up
    return down


@pytest.fixture(scope="module")
def unet():
    return xl_base_unet()


class TestPublishedModel:
    def test_the_configuration_is_the_published_one(self, unet):
        assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684

    def test_all_560_default_targets_are_found_by_diffusers(self, unet):
        targets = list(find_targets(unet, SPEC.lora_targets))
        assert len(targets) == 560
        assert read_back(unet, targets) == {module: number for number, module in enumerate(targets)}

    def test_so_are_all_794_layers(self, unet):
        assert len(layers(unet)) == 794
        assert read_back(unet, layers(unet)) == {module: number for number, module in enumerate(layers(unet))}

    @pytest.mark.parametrize(
        "module, name",
        [
            ("conv_in", "input_blocks.0.0"),
            ("conv_out", "out.2"),
            ("time_embedding.linear_1", "time_embed.0"),
            ("add_embedding.linear_2", "label_emb.0.2"),
            ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            (
                "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.2",
                "input_blocks.4.1.transformer_blocks.1.ff.net.2",
            ),
            ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
            ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
            ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
            ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
            ("up_blocks.0.attentions.2.proj_out", "output_blocks.2.1.proj_out"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
            ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
            ("up_blocks.2.resnets.2.conv2", "output_blocks.8.0.out_layers.3"),
        ],
    )
    def test_names_as_published(self, unet, module, name):
        """The keys of sd_xl_base_1.0.safetensors, without `model.diffusion_model.` and `.weight`."""
        assert names_of(unet).name(module) == name


SMALL = XL_BASE_UNET | {"block_out_channels": [32, 32, 32], "transformer_layers_per_block": 1, "norm_num_groups": 8}


@pytest.mark.parametrize("blocks, depth", [(1, 2), (2, 1), (2, 2), (2, 4), (3, 1), (4, 1)])
def test_other_sizes_are_found_by_diffusers_too(blocks, depth):
    """Up to ten numbered blocks: Diffusers takes block 10's keys for block 1's."""
    down = ["DownBlock2D", *["CrossAttnDownBlock2D"] * (blocks - 1)]
    sizes = {
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in down[::-1]],
        "block_out_channels": [32] * blocks,
        "layers_per_block": depth,
        "attention_head_dim": 4,
        "transformer_layers_per_block": 1,
    }
    with torch.device("meta"):
        other = UNet2DConditionModel(**(SMALL | sizes))
    assert read_back(other, layers(other)) == {module: number for number, module in enumerate(layers(other))}


def test_blocks_of_unequal_depth_count_on():
    """Diffusers reads no such names back, so they are counted by hand: 2 + 1 + 3 resnets, then 4 + 2 + 3."""
    with torch.device("meta"):
        other = UNet2DConditionModel(**(SMALL | {"layers_per_block": [2, 1, 3], "attention_head_dim": 4}))
    names = names_of(other)
    assert names.name("down_blocks.1.resnets.0.conv1") == "input_blocks.4.0.in_layers.2"
    assert names.name("down_blocks.1.downsamplers.0.conv") == "input_blocks.5.0.op"
    assert names.name("down_blocks.2.attentions.2.proj_in") == "input_blocks.8.1.proj_in"
    assert names.name("up_blocks.0.resnets.3.conv1") == "output_blocks.3.0.in_layers.2"
    assert names.name("up_blocks.1.upsamplers.0.conv") == "output_blocks.5.2.conv"
    assert names.name("up_blocks.2.resnets.2.conv1") == "output_blocks.8.0.in_layers.2"
    assert len({names.name(module) for module in layers(other)}) == len(layers(other))


def test_an_upsampler_without_attention_before_it_comes_second():
    names = SgmNames.from_config(
        {"layers_per_block": 1, "down_block_types": ["a"] * 2, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
    )
    assert names.name("up_blocks.0.upsamplers.0.conv") == "output_blocks.1.1.conv"

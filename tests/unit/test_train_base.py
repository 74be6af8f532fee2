"""The base's training goes on from its file as if it had never stopped, and from a pipeline that is there."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from assets import train_base


class Net(nn.Module):
    """A matrix and a convolution in the middle, which Muon trains, between two that AdamW does."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 8)
        self.conv_out = nn.Conv2d(8, 3, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels):
        hidden = self.conv(self.conv_in(pixels)).relu().permute(0, 2, 3, 1)
        return self.conv_out(self.linear(hidden).permute(0, 3, 1, 2))


def build_trainer(work, stage):
    torch.manual_seed(0)
    work.mkdir(exist_ok=True)
    return train_base.Trainer(stage, Net(), work)


def loss_with(net):
    def loss_of(step):
        pixels = torch.randn(2, 3, 8, 8, generator=train_base.generator(step, 0))
        return (net(pixels) - pixels).square().mean()

    return loss_of


@pytest.mark.parametrize("muon", [False, True])
def test_an_interrupted_stage_goes_on(tmp_path, muon):
    stage = replace(train_base.STAGES["unet"], steps=6, every=2, muon=muon)
    whole = build_trainer(tmp_path / "whole", stage)
    whole.run(loss_with(whole.module), lambda: "")

    def interrupted(step):
        if step == 5:
            raise KeyboardInterrupt
        return loss_with(first.module)(step)

    first = build_trainer(tmp_path / "cut", stage)
    with pytest.raises(KeyboardInterrupt):
        first.run(interrupted, lambda: "")
    second = build_trainer(tmp_path / "cut", stage)
    assert second.step == 4, "the last file is of step 4"
    second.run(loss_with(second.module), lambda: "")
    assert second.file.read_bytes() == whole.file.read_bytes()
    assert len(whole.optimizers) == 1 + muon


BASE = train_base.ASSETS / "base-emoji"


def write_renders(work, styles):
    """Three subjects of which only the styles that are named have pictures."""
    rng = torch.Generator().manual_seed(0)
    pictures = {style: torch.randint(256, (3, 64, 64, 3), generator=rng, dtype=torch.uint8) for style in styles}
    save_file(pictures, work / "renders.safetensors")
    rows = [{"caption": f"a {name} emoji", "line_caption": f"a {name} emoji, line drawing"} for name in "xyz"]
    (work / "subjects.json").write_text(json.dumps(rows))


def test_the_denoiser_goes_on_from_a_pipeline_and_sees_nothing_of_the_loras_style(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(train_base, "encode", lambda vae, pixels: drawn.append(pixels) or torch.zeros(6, 4, 16, 16))
    write_renders(tmp_path, ["flat", "line", "high-contrast"])
    stage = replace(train_base.STAGES["unet"], steps=1, batch_size=2, num_small_batches=0)
    train_base.train_unet(tmp_path, stage, BASE)
    renders = load_file(tmp_path / "renders.safetensors")
    (shown,) = drawn
    assert torch.equal(shown, torch.cat([renders["flat"], renders["line"]]).permute(0, 3, 1, 2))
    before = load_file(BASE / "unet/diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "unet.safetensors")
    name = "down_blocks.0.resnets.0.conv1.weight"
    # One step of the warm-up, a two-hundredth of the learning rate, moves a trained weight a little.
    moved = (after[f"model.unet.{name}"] - before[name].float()).norm() / before[name].float().norm()
    assert 0 < moved < 0.05

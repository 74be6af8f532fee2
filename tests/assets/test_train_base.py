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


def write_renders(work):
    """Three subjects in both styles, the second not to be seen in high contrast."""
    rng = torch.Generator().manual_seed(0)
    styles = ("high-contrast", "flat")
    pictures = {style: torch.randint(256, (3, 64, 64, 3), generator=rng, dtype=torch.uint8) for style in styles}
    save_file(pictures, work / "renders.safetensors")
    rows = [{"caption": name, "high_contrast_caption": f"{name} line", "unseen": name == "y"} for name in "xyz"]
    (work / "subjects.json").write_text(json.dumps(rows))
    return pictures


def test_the_denoiser_goes_on_from_a_pipeline(tmp_path):
    write_renders(tmp_path)
    stage = replace(train_base.STAGES["unet"], steps=1, batch_size=2, num_small_batches=0)
    train_base.train_unet(tmp_path, stage, BASE)
    before = load_file(BASE / "unet/diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "unet.safetensors")
    name = "down_blocks.0.resnets.0.conv1.weight"
    # One step of the warm-up, a two-hundredth of the learning rate, moves a trained weight a little.
    moved = (after[f"model.unet.{name}"] - before[name].float()).norm() / before[name].float().norm()
    assert 0 < moved < 0.05


def test_the_denoiser_sees_each_picture_under_its_words_and_none_that_is_to_stay_unseen(tmp_path, monkeypatch):
    pictures = write_renders(tmp_path)
    seen = {}

    class Enough(Exception):
        pass

    def stop_at_the_draw(weights, size, **_):
        seen["weights"] = weights
        raise Enough

    monkeypatch.setattr(
        train_base, "encode", lambda vae, pixels: seen.update(pixels=pixels) or torch.zeros(6, 4, 16, 16)
    )
    monkeypatch.setattr(train_base, "tokenize", lambda tokenizer, texts: seen.update(texts=texts))
    monkeypatch.setattr(torch, "multinomial", stop_at_the_draw)
    with pytest.raises(Enough):
        train_base.train_unet(tmp_path, train_base.STAGES["unet"], BASE)
    expected = torch.cat([pictures["flat"], pictures["high-contrast"]]).permute(0, 3, 1, 2)
    assert torch.equal(seen["pixels"], expected)
    assert seen["texts"] == ["x", "y", "z", "x line", "y line", "z line", ""], "the last is a dropped caption's"
    share = train_base.HIGH_CONTRAST_SHARE
    flat = (1 - share) / 3
    assert seen["weights"].tolist() == pytest.approx([flat, flat, flat, share / 2, 0, share / 2])

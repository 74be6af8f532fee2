"""How a job deals with memory: predicted, decided on, and no part of the result."""

from __future__ import annotations

import pytest

from tests.support.harness import assert_same, changed, succeed, together

ADAPTER = {
    "mixed_precision": "bf16",
    "train_args.train_text_encoder": True,
    "lora.rank": 3,
    "lora.dropout": 0.2,
    "lora.target_modules": ["to_q", "conv1"],
}


@pytest.mark.parametrize(
    "kind", [pytest.param({}, id="plain", marks=pytest.mark.slow), pytest.param(ADAPTER, id="adapter")]
)
def test_gradient_checkpointing_changes_no_bit(task, tmp_path, kind):
    def job(wanted):
        return succeed(changed(task, {"train_args.gradient_checkpointing": wanted, **kind}), tmp_path / str(wanted))

    without, with_it = together(lambda: job(False), lambda: job(True))
    assert_same(without.folders(), with_it.folders())
    assert "; without gradient checkpointing" in without.stderr
    assert "; with gradient checkpointing" in with_it.stderr


def test_the_plan_predicts_memory(task, tmp_path):
    here = succeed(task, tmp_path / "out", "--plan").stdout
    assert "; without gradient checkpointing (auto: " in here
    on_a_gpu = succeed(task, tmp_path / "out", "--plan", env={"DEVICE": "cuda"}).stdout
    assert "plus about 0.5 GiB for CUDA" in on_a_gpu

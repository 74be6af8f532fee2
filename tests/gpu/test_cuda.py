"""What the CPU cannot show: the same guarantees on a GPU, and fp16 with its loss scale."""

from __future__ import annotations

import signal

import pytest

from tests.gpu.device import DEVICE
from tests.support.harness import assert_same, changed, read_json, run_chain, start_job, succeed

pytestmark = pytest.mark.gpu

GPU = {"DEVICE": DEVICE}
KINDS = {
    "float32": {},
    "fp16, v_prediction, Min-SNR": {
        "mixed_precision": "fp16",
        "train_args.prediction_type": "v_prediction",
        "train_args.snr_gamma": 5.0,
    },
    "bf16, noise offset": {"mixed_precision": "bf16", "train_args.noise_offset": 0.1},
    "fp16, text encoder, dropout": {
        "mixed_precision": "fp16",
        "train_args.train_text_encoder": True,
        "lora": {"rank": 4, "alpha": 2, "dropout": 0.2, "use_rslora": True, "target_modules": ["to_q", "conv1"]},
    },
    "loftq": {"lora.init_lora_weights": "loftq", "lora.target_modules": r".*(to_q|to_v|conv1)"},
    "xl, fp16": {"mixed_precision": "fp16"},
    "xl, bf16": {"mixed_precision": "bf16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_split_anywhere(task, model, xl_model, tmp_path, kind):
    base = xl_model if kind.startswith("xl") else model
    task = changed(task, {"model.name": str(base), **KINDS[kind]})
    whole = succeed(task, tmp_path / "whole", env=GPU)
    chain = run_chain(task, tmp_path, (1, 4, 2, 3), each=lambda _: GPU)
    assert_same(chain[-1].weights(), whole.weights())


def test_same_task_twice(task, tmp_path):
    one, other = (succeed(task, tmp_path / name, env=GPU) for name in ("one", "other"))
    assert_same(other.folders(), one.folders())


def test_the_loss_scale_is_part_of_the_state(task, tmp_path):
    done = succeed(changed(task, {"mixed_precision": "fp16"}), tmp_path / "out", env=GPU)
    state = read_json(done.out / "checkpoint" / "state.json")["state"]
    assert state["loss_scale"]["scale"] >= 1
    assert state["optimizer_step"] <= state["global_step"] == 10


@pytest.mark.parametrize("kind", ["float32", "fp16, text encoder, dropout", "xl, bf16"])
def test_gradient_checkpointing_changes_no_bit(task, model, xl_model, tmp_path, kind):
    base = xl_model if kind.startswith("xl") else model
    found = [
        succeed(
            changed(task, {"model.name": str(base), "train_args.gradient_checkpointing": wanted, **KINDS[kind]}),
            tmp_path / str(wanted),
            env=GPU,
        )
        for wanted in (False, True)
    ]
    assert_same(found[0].folders(), found[1].folders())


def test_killed_and_started_again(task, tmp_path):
    undisturbed = succeed(task, tmp_path / "undisturbed", env=GPU)
    running = start_job(task, tmp_path / "out", env=GPU | {"SAVE_SECONDS": "0"})
    running.until_step(3)
    running.signal(signal.SIGKILL)
    running.process.wait()
    assert_same(succeed(task, tmp_path / "out", env=GPU).folders(), undisturbed.folders())


def test_images_in_between_change_no_weight(task, tmp_path):
    """The encoders are on the device for the images, and for the visits that are encoded after them."""
    plain, drawn = (
        succeed(changed(task, {"validation.every_n_steps": every}), tmp_path / str(every), env=GPU)
        for every in (None, 2)
    )
    assert_same(drawn.weights(), plain.weights())


def test_result_names_the_device(task, tmp_path):
    done = succeed(task, tmp_path / "out", env=GPU)
    assert done.manifest["device"]["type"] == DEVICE
    assert done.result["peak_memory_bytes"] > 0

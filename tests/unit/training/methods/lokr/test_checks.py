"""What is refused before anything is loaded."""

import pytest
import torch
from safetensors.torch import save_file

from engine.core.errors import CheckpointError, TaskError
from engine.models import registry
from engine.models.base_model import BaseModel
from engine.task.task import Lora
from engine.training.methods.lokr.checks import check
from engine.training.methods.lora.formats.start_file import LORA_FILE
from engine.training.methods.registry import METHODS, load_parent
from tests.support import tiny
from tests.support.abouts import task_of

NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TARGETS = (NAME.removeprefix("unet."),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("model"))


def checked(folder, parent=None, text=False, single_file=None, **options):
    family = registry.FAMILIES["StableDiffusionPipeline"]
    base = BaseModel(
        folder=folder,
        family=family,
        variants=dict.fromkeys(family.weighted),
        identity="",
        revision=None,
        single_file=single_file,
    )
    task = task_of(training_type="lokr", lora=Lora(**options), train_args={"train_text_encoder": text})
    return check(base, task, parent)


def start(folder, tensors):
    save_file(tensors, folder / LORA_FILE)
    return load_parent(folder, METHODS["lokr"])


def test_a_task_that_fits(folder):
    assert checked(folder, rank=2, factor=4) == []
    (line,) = checked(folder, single_file=object())
    assert "checked when the job starts" in line


@pytest.mark.parametrize(
    "options, words",
    [
        ({"init_lora_weights": "gaussian"}, r'lora\.init_lora_weights: "gaussian" is for a LoRA'),
        ({"init_lora_weights": "loftq"}, r'lora\.init_lora_weights: "loftq" is for a LoRA'),
        ({"text": True}, r"train_args\.train_text_encoder: .* only the denoiser"),
        ({"factor": 64, "target_modules": TARGETS}, r"lora\.factor: 64 is more than the square root"),
        ({"target_modules": ("nothing_such",)}, "matches no layer"),
    ],
)
def test_what_a_lokr_does_not_have(folder, options, words):
    with pytest.raises(TaskError, match=words):
        checked(folder, **options)


def test_a_start_must_have_the_same_factors(folder, tmp_path):
    tensors = {f"{NAME}.lokr_w1": torch.ones(8, 8), f"{NAME}.lokr_w2": torch.ones(8, 8)}
    own = {"target_modules": TARGETS, "rank": 8}
    assert checked(folder, start(tmp_path, tensors), **own) == []
    for change in ({"rank": 2}, {"factor": 4}, {"target_modules": ("to_q",)}):
        with pytest.raises(CheckpointError, match="do not fit this task's LoKr"):
            checked(folder, start(tmp_path, tensors), **(own | change))
    with pytest.raises(CheckpointError, match="is not a LoKr"):
        checked(folder, start(tmp_path, {f"{NAME}.lora_A.weight": torch.ones(2, 64)}), **own)


def test_a_start_must_be_a_file_of_this_program(tmp_path):
    save_file({f"{NAME}.lokr_w1": torch.ones(8, 8)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="the only file from which a LoKr can start"):
        load_parent(tmp_path, METHODS["lokr"])

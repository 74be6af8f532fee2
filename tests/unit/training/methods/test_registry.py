"""A checkpoint holds the files of the method that made it, and no others of earlier steps."""

import pytest

from engine.core.errors import CheckpointError
from engine.training.methods.registry import load_checkpoint
from tests.unit.results.test_checkpoint import WORLD, build, step_files, write

LORA_FILES = ("pytorch_lora_weights.safetensors", "lora_webui.safetensors")


def test_what_the_method_writes_is_read(tmp_path):
    files, digest = build(steps={name: b"weights" for name in step_files(1)})
    assert load_checkpoint(write(tmp_path, files)).digest == digest


def test_its_weights_are_not_missing(tmp_path):
    weights = {name: b"weights" for name in LORA_FILES[1:]}
    with pytest.raises(CheckpointError, match="is not a checkpoint's manifest"):
        load_checkpoint(write(tmp_path, build(weights=weights)[0]))


def test_there_may_be_no_file_for_web_interfaces(tmp_path):
    """None of them has CogVideoX."""
    files, digest = build(weights={name: b"weights" for name in LORA_FILES[:1]})
    assert load_checkpoint(write(tmp_path, files)).digest == digest


def test_no_other_file_of_an_earlier_step(tmp_path):
    files, _ = build(steps={"steps/000001_other.safetensors": b"weights"})
    with pytest.raises(CheckpointError, match=r"000001_other.*not a file of a checkpoint"):
        load_checkpoint(write(tmp_path, files))


@pytest.mark.parametrize("name", ["of a later version", ["lora"], 1])
def test_a_method_that_is_not_there(tmp_path, name):
    with pytest.raises(CheckpointError, match="training_type that this version does not support"):
        load_checkpoint(write(tmp_path, build(world=WORLD | {"training_type": name})[0]))

"""What identifies a task, and what checkpoints say of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.task.identity import agreed, canonical, recorded
from engine.task.key import Chain, key
from tests.support.tasks import MINIMAL, read, task_with


def test_canonical_leaves_out_defaults_and_where_it_runs():
    task = task_with("train_args.resolution", 512) | {
        "checkpoint": "x",
        "dataloader_num_workers": 3,
        "version": "3.0.0",
    }
    assert canonical(read(task)) == {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}}
    assert "train_args" not in canonical(read(task_with("train_args.gradient_checkpointing", True)))
    assert "train_args" not in canonical(read(task_with("train_args.offload", True)))
    task = task_with("lora.target_modules", ["to_k"])
    assert canonical(read(task))["lora"] == {"target_modules": ["to_k"]}


@dataclass(frozen=True)
class Inner:
    a: int = key(0, "A", "A.")
    b: tuple[str, ...] = key((), "B", "B.")


@dataclass(frozen=True)
class Section:
    always: int = key(0, "A", "A.", chain=Chain.RECORDED)
    both: int = key(0, "B", "B.", chain=Chain.RECORDED | Chain.AGREED)
    whole: Inner = key(Inner, "C", "C.")
    agreed_if_set: int = key(0, "D", "D.", chain=Chain.AGREED_IF_SET)
    unrecorded: int = key(0, "E", "E.", chain=Chain.UNRECORDED)
    memory: int = key(0, "F", "F.", chain=Chain.NO_EFFECT)


@dataclass(frozen=True)
class Toy:
    section: Section = key(Section, "S", "S.", chain=Chain.BY_ITS_KEYS)
    new: int = key(0, "N", "N.")


def test_what_is_at_its_default():
    assert canonical(Toy()) == {}
    assert recorded(Toy()) == {"section": {"always": 0, "both": 0}}
    assert agreed(Toy()) == {"both": 0}


def test_what_is_set():
    section = Section(always=1, both=2, whole=Inner(a=3, b=("x",)), agreed_if_set=4, unrecorded=5, memory=6)
    toy = Toy(section=section, new=7)
    whole = {"a": 3, "b": ["x"]}
    assert canonical(toy) == {
        "section": {"always": 1, "both": 2, "whole": whole, "agreed_if_set": 4, "unrecorded": 5},
        "new": 7,
    }
    assert recorded(toy) == {"section": {"always": 1, "both": 2, "whole": whole}, "new": 7}
    assert agreed(toy) == {"both": 2, "agreed_if_set": 4}


def test_an_object_is_recorded_whole_but_identified_by_what_differs():
    toy = Toy(section=replace(Section(), whole=Inner(a=3)))
    assert recorded(toy)["section"]["whole"] == {"a": 3, "b": []}
    assert canonical(toy) == {"section": {"whole": {"a": 3}}}


def test_a_task_of_defaults_is_recorded_as_by_the_first_release():
    """Checkpoints of before continue: no key may be added here."""
    task = read(MINIMAL)
    assert agreed(task) == {"batch_size": 16, "resolution": 512, "mixed_precision": "no", "seed": 0}
    found = recorded(task)
    assert set(found) == {"train_args", "transforms", "validation"}
    assert set(found["transforms"]) == {"center_crop", "random_flip"}
    assert set(found["validation"]) == {"prompt", "num_images"}
    assert set(found["train_args"]) == {
        *("learning_rate", "batch_size", "gradient_accumulation_steps", "prediction_type", "max_grad_norm"),
        *("max_train_epochs", "max_train_steps", "scale_lr", "resolution", "noise_offset", "snr_gamma"),
        *("lr_scheduler", "adam_args"),
    }
    assert found["train_args"]["adam_args"] == {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "epsilon": 1e-8}

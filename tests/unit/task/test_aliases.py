"""Names of other trainers are answered with ours."""

from __future__ import annotations

import pytest

from engine.task import aliases
from tests.support.tasks import KEYS, problems, task_with


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("train_args.lr", "train_args.learning_rate"),
        ("train_args.steps", "train_args.max_train_steps or train_args.num_train_steps"),
        ("epochs", "train_args.max_train_epochs or train_args.num_train_epochs"),
        ("train_args.train_batch_size", "train_args.batch_size"),
        ("network_dim", "lora.rank"),
        ("lora.network_alpha", "lora.alpha"),
        ("lora.R", "lora.rank"),
        ("dataset.fps", "dataset.frame_rate"),
    ],
)
def test_other_trainers_names_get_ours(path, meant):
    (problem,) = problems(task_with(path, 3))
    assert problem.endswith(f": got 3 for an unknown key, did you mean {meant}?")


def test_a_key_that_there_is_none_for_says_what_to_do():
    (problem,) = problems(task_with("dataset.caption_extension", ".txt"))
    assert "unknown key, no key is needed: captions are read from NAME.txt or NAME.caption" in problem


def test_aliases_are_of_keys_that_there_are_and_of_no_others():
    last = {path.rpartition(".")[2] for path in KEYS}
    for alias, meant in aliases.ALIASES.items():
        assert set(meant) <= set(KEYS), alias
        assert alias not in last, f"{alias} is found by itself"
    assert not set(aliases.NOT_KEYS) & (last | set(aliases.ALIASES))
    # one problem ends where the next begins
    assert not any("; " in advice for advice in aliases.NOT_KEYS.values())

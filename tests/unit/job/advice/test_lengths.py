"""What ends sooner than a person is likely to have meant is said first."""

from dataclasses import replace

import pytest

from engine.job.advice import lengths
from engine.job.advice.describe import describe
from engine.results.checkpoint import Checkpoint
from tests.support.jobs import job_of, text


def notes(**args):
    return lengths.notes(job_of(text(train_args=args)))


ROWS = 10
"""Of the dataset; an epoch of the default batch of 16 is one step."""


@pytest.mark.parametrize(
    ("args", "words", "advice"),
    [
        ({}, "a step takes 16 images, and the end is max_train_epochs 1, the default;", {"max_train_steps": 1000}),
        ({"num_train_steps": 1000}, "num_train_steps is 1,000, but the whole training ends after 1 step", None),
        ({"num_train_epochs": 5}, "num_train_epochs is 5, but the whole training ends after 1 step", None),
        ({"num_train_epochs": 5, "max_train_steps": 3}, "ends after 3 steps by max_train_steps 3", None),
        ({"num_train_steps": 8, "max_train_steps": 3}, "ends after 3 steps by max_train_steps 3", None),
        ({"max_train_steps": 1000}, "this task trains 1 of 1,000 steps, one epoch by num_train_epochs 1", None),
        ({"max_train_epochs": 9, "batch_size": 2}, "this task trains 5 of 45 steps, one epoch", None),
    ],
)
def test_it_is_noted_with_the_key_to_set_and_setting_it_helps(args, words, advice):
    (note,) = notes(**args)
    assert words in note
    if advice is None:
        key, number = note.partition("set train_args.")[2].replace(";", " ").split()[0:3:2]
        advice = {key: int(number)}
    else:
        advice = advice | {"num_train_steps": 1000}
    assert notes(**args | advice) == []


@pytest.mark.parametrize(
    "args",
    [
        {"num_train_steps": 100, "max_train_steps": 15000},
        {"num_train_steps": 100, "max_train_steps": 100},
        {"num_train_steps": 1, "max_train_steps": 1},
        {"num_train_steps": 1},
        {"max_train_steps": 1},
        {"batch_size": 1},
        {"num_train_epochs": 2, "max_train_epochs": 9},
    ],
)
def test_what_is_meant_is_not(args):
    assert notes(**args) == []


def test_it_comes_first_and_once():
    job = job_of(text(train_args={"num_train_steps": 1000}))
    (note,) = lengths.notes(job)
    assert describe(job)[0] == f"note: {note}" and sum(note in line for line in describe(job)) == 1


def test_who_goes_on_from_a_checkpoint_knows():
    job = job_of(text(train_args={"max_train_steps": 1000}))
    given = {"settings": job.recorded_settings, "digest": "d", "global_step": 1}
    assert (
        lengths.notes(replace(job, parent=Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given))) == []
    )


@pytest.mark.parametrize(
    ("rows", "args", "words"),
    [
        (10, {"batch_size": 1}, "shows each image 1 times on average"),
        (10, {"batch_size": 2, "max_train_steps": 49, "num_train_steps": 49}, "9.8 times"),
        (10, {"batch_size": 2, "max_train_steps": 50, "num_train_steps": 5}, None),
        (1000, {"max_train_epochs": 9}, "9.1 times"),
        (1001, {"max_train_epochs": 9}, None),
        (10, {}, None),
    ],
)
def test_few_visits_of_a_small_dataset(rows, args, words):
    """Not where `notes` says already that the training is a single step."""
    job = job_of(text(train_args=args), rows=rows)
    found = lengths.few_visits(job)
    assert [words in note for note in found] == ([True] if words else [])
    assert all(f"note: {note}" in describe(job) for note in found)

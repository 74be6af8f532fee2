"""Micro-batches made ahead of time: the same ones, but for captions that trained text encoders are still to read."""

import dataclasses

import torch

from engine.training.encoding.batches import BatchMaker
from tests.support.fakes import CPU, LinearFamily
from tests.unit.training.test_trainer import examples_of, make_step_range, make_task


def maker_of(task, family=None):
    args = task.train_args
    return BatchMaker(
        family or LinearFamily(),
        CPU,
        dtype=torch.float32,
        seed=task.seed,
        extent=args.extent,
        noise_offset=args.noise_offset,
    )


def tensors(batch):
    found = dataclasses.asdict(batch)
    return {name: value for name, value in (found | found.pop("conditioning")).items() if value is not None}


def test_it_is_the_same_whenever_it_is_prepared():
    task = make_task(noise_offset=0.1)
    examples = examples_of(make_step_range(task), 3)[:2]
    first, other = maker_of(task), maker_of(task)
    other.prepare(examples_of(make_step_range(task), 1))
    found = [tensors(maker.complete(maker.prepare(examples))) for maker in (first, other)]
    assert {*found[0]} == {"latents", "noise", "timesteps", "states"}
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_it_knows_what_it_is_of():
    task = make_task()
    examples = examples_of(make_step_range(task), 3)
    prepared = maker_of(task).prepare(examples[:2])
    assert prepared.address == 18 == examples[0].visit.number
    assert prepared.is_of(examples[:2])
    assert not prepared.is_of(examples[2:4]) and not prepared.is_of(examples[:1])
    assert not prepared.is_of(examples_of(make_step_range(task), 3)[:2])


def test_trained_text_encoders_read_captions_as_late_as_possible():
    task = make_task(train_text_encoder=True)
    family = LinearFamily()
    maker = maker_of(task, family)
    prepared = maker.prepare(examples_of(make_step_range(task), 0, text=True)[:2])
    assert prepared.batch.conditioning == {} and {*prepared.tokens} == {"ids"}
    before = maker.complete(prepared).conditioning["states"]
    family.text_encoders["text_encoder"].weight.requires_grad_(True)
    with torch.no_grad():
        family.text_encoders["text_encoder"].weight.mul_(2)
    after = maker.complete(prepared).conditioning["states"]
    assert torch.equal(after, 2 * before) and after.requires_grad

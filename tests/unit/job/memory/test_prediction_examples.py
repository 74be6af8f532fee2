"""The example tasks name the smallest usual card on which they are predicted to fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from engine.job import memory
from engine.job.memory import Offload
from engine.job.memory.decisions import chosen
from engine.task.task import parse_task
from tests.support.examples import EXAMPLES, PUBLISHED_AS, SIZED
from tests.support.published_models import GIB, base_of, gpu

CARDS = (4, 6, 8, 12, 16, 24, 32, 40, 48, 80, 141)
"""Memory of usual cards, in GiB."""
CUDA = GIB // 2
"""What CUDA itself takes, in bytes."""


@pytest.mark.parametrize("name", SIZED)
def test_the_memory_in_the_name_is_the_smallest_that_fits_with_a_tenth_to_spare(name):
    task = parse_task((EXAMPLES / f"{name}.json").read_bytes(), source=name)
    if task.train_args.offload == "auto":  # it would fit on smaller cards, but slowly
        task = replace(task, train_args=replace(task.train_args, offload=False))
    base = base_of(PUBLISHED_AS[task.model.name])

    def fits(card):
        available = card * GIB - CUDA
        return chosen(base, task, gpu(available)).peak <= memory.SPARE * available

    assert f"{next(card for card in CARDS if fits(card))}gb" == name.rpartition("_")[2]


@pytest.mark.parametrize("name", SIZED)
def test_the_page_has_what_is_predicted_and_the_licence(name):
    """In the row of each task: the peaks with text encoders kept and freed, the base model, and its licence."""
    task = parse_task((EXAMPLES / f"{name}.json").read_bytes(), source=name)
    base = base_of(PUBLISHED_AS[task.model.name])
    (row,) = [line for line in (EXAMPLES / "README.md").read_text().splitlines() if f"]({name}.json)" in line]
    offload = Offload.BLOCKS if task.train_args.offload is True else Offload.NOTHING
    found = [
        memory.predict(base, task, recompute=True, device="cuda", apart=apart, offload=offload)
        for apart in (True, False)
    ]
    peaks = sorted({round(one.peak / GIB, 1) for one in found})
    assert [float(peak) for peak in re.findall(r"(\d+\.\d) GiB", row)] == peaks
    licence = base.family.licences[task.model.name]
    assert task.model.name in row and (licence in row.lower() or licence == "other")

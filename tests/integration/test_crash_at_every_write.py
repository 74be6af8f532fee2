"""Struck before each single change that it makes to its output folder, a job ends with the undisturbed one's bytes.

The strikes: SIGKILL; SIGKILL and the loss of everything that was not synced, as in a power failure; a full disk, a lost
permission or a broken disk from there on; SIGTERM and SIGINT. Metadata are taken to be journalled in order, as ext4 and
xfs do, so that a power failure takes contents of files, and of names only the latest changes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import Forked, WitnessedRuns
from tests.support.harness import assert_same, assert_whole, changed, read_json, succeed

PUBLISHED = {".lock", "checkpoint", "validation", "report.html", "result.json", "progress.jsonl"}
SAVES = {"SAVE_SECONDS": "0"}
DONE = {"kill": (-9,), "power": (-9,), "SIGTERM": (143, 0), "SIGINT": (130, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A command on an output folder that starts as `start` and is to end with the folders `expected`."""

    start: Path
    task: dict[str, Any]
    flags: Callable[[Path], tuple[str | Path, ...]]
    orders: dict[str, Any]
    expected: dict[str, bytes]
    following: dict[str, bytes]
    """Where the same command goes on with the next slice: what that ends with."""
    changes: list[str]

    def run(self, server: WitnessedRuns, out: Path, **orders: Any) -> Forked:
        cache = server.cache
        orders = {"allowed": [str(out), str(cache)], "save_always": True, **self.orders, **orders}
        return server.run(self.task, out, *self.flags(out), env=SAVES, **orders)


def _fresh(_: Path) -> tuple[str | Path, ...]:
    return ()


def _in_place(out: Path) -> tuple[str | Path, ...]:
    return ("--checkpoint", out / "checkpoint")


def _overwriting(_: Path) -> tuple[str | Path, ...]:
    return ("--overwrite",)


INTERIM = {"validation.every_n_steps": 1, "validation.num_inference_steps": 2, "checkpoint_every_n_steps": 1}

SCENARIOS: dict[str, tuple[Callable[[Path], tuple[str | Path, ...]], dict[str, Any], dict[str, Any]]] = {
    "fresh": (_fresh, {}, {}),
    "in place": (_in_place, {}, {}),
    "in place, names cannot be swapped": (_in_place, {"no_exchange": True}, {}),
    "over another's result": (_overwriting, {}, {"seed": 8}),
    "images and LoRAs in between": (_fresh, {}, {**INTERIM, "train_args.num_train_steps": 3, "checkpoint_limit": 1}),
}
"""Flags, the witness's orders, and what is changed in the task."""


@pytest.fixture(scope="module")
def slices(task, tmp_path_factory):
    """A chain of three tasks of two steps, in one image a step; the first one's output folder."""
    sizes = {"batch_size": 1, "gradient_accumulation_steps": 1, "num_train_steps": 2, "max_train_steps": 6}
    task = changed(task, {f"train_args.{key}": value for key, value in sizes.items()})
    first = succeed(task, tmp_path_factory.mktemp("first") / "out")
    return task, first


@pytest.fixture(scope="module", params=SCENARIOS)
def scenario(request, server, slices, tmp_path_factory):
    """Each scenario with its undisturbed run."""
    task, first = slices
    flags, orders, changes = SCENARIOS[request.param]
    task = changed(task, changes)
    root = tmp_path_factory.mktemp("scenario")
    start = root / "start"
    start.mkdir()
    if flags is not _fresh:
        shutil.copytree(first.out, start, dirs_exist_ok=True)
    blank = Scenario(start=start, task=task, flags=flags, orders=orders, expected={}, following={}, changes=[])
    out = root / "undisturbed"
    shutil.copytree(start, out)
    undisturbed = blank.run(server, out, watched=str(out))
    assert undisturbed.code == 0, undisturbed.stderr
    assert undisturbed.misdeeds == []
    expected = undisturbed.folders()
    following = {}
    if flags is _in_place:
        following = blank.run(server, out).folders()
    return Scenario(
        start=start,
        task=task,
        flags=flags,
        orders=orders,
        expected=expected,
        following=following,
        changes=undisturbed.changes,
    )


def strike(server: WitnessedRuns, scenario: Scenario, out: Path, at: int, how: str, *, forever: bool = False) -> None:
    """Strike once, look at what is left, and let the same command end what it began."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(scenario.start, out)
    what = f"{how} before change {at}, {scenario.changes[at - 1]}"
    struck = scenario.run(server, out, watched=str(out), at=at, strike=how, forever=forever)
    assert struck.code in DONE.get(how, (7, 0)), f"{what}: {struck.code}\n{struck.stderr}"
    if struck.code > 0:
        assert struck.error, what
    assert struck.misdeeds == [], what
    assert_whole(out)
    if scenario.flags is _in_place and "no_exchange" not in scenario.orders:
        assert (out / "checkpoint").exists(), what
    # Complete is what the job's record no longer speaks of: then the next slice is due.
    record = out / ".job" / "record.json"
    is_complete = scenario.following and not record.exists() and struck_published(out, scenario)
    again = scenario.run(server, out)
    assert again.code == 0, f"{what}: {again.code}\n{again.stderr}"
    assert_same(again.folders(), scenario.following if is_complete else scenario.expected)
    assert {path.name for path in out.iterdir()} == PUBLISHED, what
    assert again.result["status"] == "done"
    assert again.result["checkpoint_digest"] == again.manifest["digest"]


def struck_published(out: Path, scenario: Scenario) -> bool:
    manifest = json.loads(scenario.expected["checkpoint/manifest.json"])
    there = out / "checkpoint" / "manifest.json"
    return there.exists() and read_json(there)["digest"] == manifest["digest"]


def strike_all(server: WitnessedRuns, scenario: Scenario, out: Path, how: str, points: Iterable[int]) -> None:
    """Strike at each of these points, and tell of all that went wrong at once."""
    failures = []
    for at in points:
        try:
            strike(server, scenario, out, at, how, forever=how.startswith("E"))
        except AssertionError as error:
            failures.append(f"{how} before change {at}, {scenario.changes[at - 1]}: {error}")
    assert failures == []


@pytest.mark.slow
def test_a_forked_run_is_a_plain_one(server, short_task, tmp_path):
    """What is shown by forked runs is true of the program as users start it."""
    forked = server.run(short_task, tmp_path / "forked", watched=str(tmp_path / "forked"))
    assert forked.code == 0, forked.stderr
    assert_same(forked.folders(), succeed(short_task, tmp_path / "plain").folders())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_before_every_change(server, scenario, tmp_path):
    strike_all(server, scenario, tmp_path / "out", "kill", range(1, len(scenario.changes) + 1))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("first", "how"), [*enumerate(("power", "SIGTERM", "ENOSPC", "EACCES", "EIO"), start=1)])
def test_struck_otherwise(server, scenario, tmp_path, first, how):
    """Every fifth change, each way of striking with another fifth; the last changes, which end the job, all."""
    last = len(scenario.changes)
    strike_all(server, scenario, tmp_path / "out", how, sorted({*range(first, last, 5), *range(last - 8, last + 1)}))

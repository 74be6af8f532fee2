"""What a run goes on from."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from engine.job import session
from engine.results.output.folder import OutputFolder
from engine.results.output.job_record import JobRecord

MINE = JobRecord("task", None, world={"micro_batches": 2}, curve=None, rows=8, max_steps=10)


@pytest.mark.parametrize(
    "saved, is_own",
    [
        (asdict(MINE), True),
        (asdict(MINE) | {"of a later version": 1}, True),
        (asdict(replace(MINE, world={"micro_batches": 1})), False),
        (asdict(replace(MINE, task_digest="other")), False),
        (None, False),
    ],
)
def test_only_its_own_progress(tmp_path, capsys, saved, is_own):
    """Whatever the record says: where locks fail, another job may have written it."""
    payload = json.dumps({"job": saved}).encode() + b"\ntensors"
    with OutputFolder.lock(tmp_path) as output:
        output.claim(MINE, in_place=False, overwrite=False)
        output.save_progress(payload)
        found = session._own_progress(SimpleNamespace(output=output, job=SimpleNamespace(record=MINE)))
    assert found == (payload if is_own else None)
    assert ("this task begins again" in capsys.readouterr().err) is not is_own

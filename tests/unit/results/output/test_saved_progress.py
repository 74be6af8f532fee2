"""The saved progress: what is written is read back, and only by the job that wrote it."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.results.history import StepReport
from engine.results.outcome import Before
from engine.results.output import saved_progress
from engine.results.output.folder import OutputFolder
from engine.results.output.job_record import JobRecord
from engine.results.output.saved_progress import SavedProgress
from engine.results.output.step_results import SavedState, StepResults
from engine.results.state import read_state, state_files
from tests.support.states import dump_state
from tests.unit.training.test_trainer import Run

MINE = JobRecord("task", None, invariants={"micro_batches": 2}, curve=None, rows=8, max_steps=10)
GONE = "a result of an earlier step, is missing or damaged: this task starts over"
NOT_MINE = "the saved progress belongs to another task: this task starts over"


@pytest.fixture
def output(tmp_path):
    with OutputFolder.lock(tmp_path / "out") as locked:
        locked.claim(MINE, in_place=False, overwrite=False)
        yield locked


def save(output, run, **changes):
    """Write the state's files and the progress that names them; return the progress."""
    results = StepResults(output)
    files, scalars = state_files(run.trainer.state())
    values = {
        "state": SavedState(scalars, results.write(files)),
        "history": [StepReport(1, 0.5, 1e-4, None)],
        "held_out_losses": [],
        "step_hashes": {},
        "origins": [{"device": "cpu"}],
        "so_far": Before({"train": 1.5}, [("a.png", "empty")], 7),
    }
    progress = SavedProgress(**values | changes)
    progress.write(output, MINE)
    return progress


def read(output, job=MINE):
    lines = []
    return saved_progress.read(output, job, lines.append), lines


def test_there_and_back(output):
    run = Run().train()
    written = save(output, run)
    header, lines = read(output)
    found = SavedProgress.parse(json.loads(json.dumps(header)))
    assert lines == [] and found == written
    state = read_state({name: output.stored(digest) for name, digest in found.state.files.items()}, found.state.scalars)
    assert dump_state(state) == dump_state(run.trainer.state())


def test_the_file_is_a_sealed_json_value(output):
    run = Run().train()
    save(output, run)
    data = (output.root / ".job" / "progress").read_bytes()
    digest, payload = data[:32], data[32:]
    assert digest == hashlib.sha256(payload).digest()
    header = json.loads(payload)
    assert header.keys() == {"state", "state_files", "history", "kept", "job", "origins", "so_far"}
    tensors = dump_state(run.trainer.state())[0]
    assert header["state_files"] == {"state.safetensors": hashlib.sha256(tensors).hexdigest()}
    assert header["job"] == {
        **{"task_digest": "task", "parent": None, "world": {"micro_batches": 2}},
        **{"curve": None, "rows": 8, "max_steps": 10},
    }


def test_what_an_earlier_version_did_not_save_is_empty(output):
    header = {"state": {"global_step": 1}, "state_files": {}, "history": "", "job": MINE.described(), "origins": []}
    output.save_progress(json.dumps(header).encode())
    found = SavedProgress.parse(read(output)[0])
    assert (found.so_far, found.step_hashes, found.held_out_losses) == (Before(), {}, [])


def test_one_with_the_tensors_in_it_starts_over(output):
    """The format of earlier versions."""
    header = {"state": {"global_step": 1}, "history": "", "job": MINE.described(), "origins": []}
    output.save_progress(json.dumps(header).encode() + b"\n" + b"tensors\n")
    lines = ["the saved progress is of an earlier version of this program: this task starts over"]
    assert read(output) == (None, lines)


def test_nothing_saved(output):
    assert read(output) == (None, [])


@pytest.mark.parametrize(
    "saved, is_own",
    [
        (MINE.described(), True),
        (MINE.described() | {"of a later version": 1}, True),
        (replace(MINE, invariants={"micro_batches": 1}).described(), False),
        (replace(MINE, task_digest="other").described(), False),
        (None, False),
    ],
)
def test_only_its_own(output, saved, is_own):
    """Whatever the record says: where locks fail, another job may have written it."""
    output.save_progress(json.dumps({"job": saved, "state_files": {}}).encode())
    found, lines = read(output)
    assert (found == {"job": saved, "state_files": {}}) is is_own
    assert lines == ([] if is_own else [NOT_MINE])


class TestStepResults:
    def test_all_that_it_names_are_there(self, output):
        hashes = StepResults(output).write({"a": b"1", "b": b"2"})
        StepResults(output).write({"of a later step": b"3"})
        save(output, Run(), step_hashes=hashes)
        header, lines = read(output)
        assert header["kept"] == hashes and lines == []

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
    def test_one_that_it_names_is_gone_or_damaged(self, output, damage):
        hashes = StepResults(output).write({"a": b"1", "b": b"2"})
        save(output, Run(), step_hashes=hashes)
        damage(output.root / ".job" / "kept" / hashes["b"])
        assert read(output) == (None, [f"b, {GONE}"])


LARGE = """
import resource, sys, torch
from pathlib import Path
from tests.unit.results.output.test_saved_progress import MINE, save
from tests.unit.training.test_trainer import Run
from engine.results.output.folder import OutputFolder
from engine.results.state import read_state, weights_digest

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

run = Run().train(stop=1)
name, parameter = next(iter(run.trainable.parameters.items()))
if sys.argv[2] == "save":
    parameter.data = torch.zeros(1000, 10_000)
    slots = run.trainer._optimizer._optimizer.state[parameter]
    slots |= {"exp_avg": torch.zeros(1000, 10_000), "exp_avg_sq": torch.zeros(1000, 10_000)}
with OutputFolder.lock(Path(sys.argv[1])) as output:
    output.claim(MINE, in_place=False, overwrite=False)
    before = peak()
    if sys.argv[2] == "save":
        weights_digest(run.trainable.state())
        save(output, run)
    else:
        saved = output._kept.iterdir()
        state = read_state({f"{k}": output.stored(path.name) for k, path in enumerate(saved)}, {
            "global_step": 1, "optimizer_step": 1, "loss_scale": None
        })
        assert sum(t.nbytes for named in state.optimizer.slots.values() for t in named.values()) >= 80_000_000
    print(peak() - before)
"""


@pytest.mark.long
def test_a_large_state_is_never_in_memory_twice(tmp_path):
    """120 MB of tensors, as the trainer has them; in processes of their own, whose peaks are not an earlier test's."""
    root = Path(__file__).parents[4]
    grown = {}
    for action in ("save", "read"):
        command = [sys.executable, "-c", LARGE, str(tmp_path / "out"), action]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        grown[action] = int(done.stdout)
    assert grown["save"] < 50 and grown["read"] < 170


@pytest.mark.parametrize("position", [0, 40, -1])
def test_a_damaged_one_counts_as_none(output, position):
    save(output, Run())
    path = output.root / ".job" / "progress"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert read(output) == (None, [])

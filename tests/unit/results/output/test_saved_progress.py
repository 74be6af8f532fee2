"""The saved progress: what is written is read back, and only by the job that wrote it."""

import errno
import hashlib
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from engine.results.history import StepReport
from engine.results.outcome import Before
from engine.results.output import saved_progress
from engine.results.output.folder import OutputFolder
from engine.results.output.job_record import JobRecord
from engine.results.output.saved_progress import SavedProgress
from engine.results.output.step_results import StepResults
from engine.results.state import dump_state
from tests.unit.training.test_trainer import Run

MINE = JobRecord("task", None, invariants={"micro_batches": 2}, curve=None, rows=8, max_steps=10)
GONE = "a result of an earlier step, is missing or damaged: this task starts over"
NOT_MINE = "the saved progress belongs to another task: this task starts over"


@pytest.fixture
def output(tmp_path):
    with OutputFolder.lock(tmp_path / "out") as locked:
        locked.claim(MINE, in_place=False, overwrite=False)
        yield locked


def progress_of(run, **changes):
    values = {
        "state": run.trainer.state(),
        "history": [StepReport(1, 0.5, 1e-4, None)],
        "held_out_losses": [],
        "step_hashes": {},
        "origins": [{"device": "cpu"}],
        "so_far": Before({"train": 1.5}, [("a.png", "empty")], 7),
    }
    return SavedProgress(**values | changes)


def read(output, job=MINE):
    lines = []
    return saved_progress.read(output, job, lines.append), lines


def test_there_and_back(output):
    run = Run().train()
    written = progress_of(run)
    written.write(output, MINE)
    (header, tensors), lines = read(output)
    found = SavedProgress.parse(json.loads(json.dumps(header)), tensors)
    assert lines == [] and dump_state(found.state) == dump_state(written.state)
    assert replace(found, state=written.state) == written


def test_the_file_is_that_of_earlier_versions(output):
    """The SHA-256 of the rest, one line of JSON, and the bytes of `safetensors.torch.save`."""
    run = Run().train()
    progress_of(run).write(output, MINE)
    data = (output.root / ".job" / "progress").read_bytes()
    digest, payload = data[:32], data[32:]
    header, _, tensors = payload.partition(b"\n")
    assert digest == hashlib.sha256(payload).digest() and tensors == dump_state(run.trainer.state())[0]
    assert json.loads(header).keys() == {"state", "history", "kept", "job", "origins", "so_far"}
    assert json.loads(header)["job"] == {
        **{"task_digest": "task", "parent": None, "world": {"micro_batches": 2}},
        **{"curve": None, "rows": 8, "max_steps": 10},
    }


def test_what_an_earlier_version_did_not_save_is_empty(output):
    tensors, scalars = dump_state(Run().trainer.state())
    header = {"state": scalars, "history": "", "job": MINE.described(), "origins": []}
    output.save_progress([json.dumps(header).encode() + b"\n", tensors])
    (header, tensors), _ = read(output)
    found = SavedProgress.parse(header, tensors)
    assert (found.so_far, found.step_hashes, found.held_out_losses) == (Before(), {}, [])


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
    output.save_progress([json.dumps({"job": saved}).encode() + b"\ntensors"])
    found, lines = read(output)
    assert (found == ({"job": saved}, b"tensors")) is is_own
    assert lines == ([] if is_own else [NOT_MINE])


class TestStepResults:
    def test_all_that_it_names_are_there(self, output):
        hashes = StepResults(output).write({"a": b"1", "b": b"2"})
        StepResults(output).write({"of a later step": b"3"})
        progress_of(Run(), step_hashes=hashes).write(output, MINE)
        (header, _), lines = read(output)
        assert header["kept"] == hashes and lines == []

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
    def test_one_that_it_names_is_gone_or_damaged(self, output, damage):
        hashes = StepResults(output).write({"a": b"1", "b": b"2"})
        progress_of(Run(), step_hashes=hashes).write(output, MINE)
        damage(output.root / ".job" / "kept" / hashes["b"])
        assert read(output) == (None, [f"b, {GONE}"])


LARGE = """
import resource, sys, torch
from pathlib import Path
from tests.unit.results.output.test_saved_progress import MINE, progress_of
from tests.unit.training.test_trainer import Run
from engine.results.output.folder import OutputFolder
from engine.results.state import weights_digest

run = Run().train(stop=1)
name, parameter = next(iter(run.trainable.parameters.items()))
parameter.data = torch.zeros(1000, 25_000)
slots = run.trainer._optimizer._optimizer.state[parameter]
slots |= {"exp_avg": torch.zeros(1000, 25_000), "exp_avg_sq": torch.zeros(1000, 25_000)}
with OutputFolder.lock(Path(sys.argv[1])) as output:
    output.claim(MINE, in_place=False, overwrite=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights_digest(run.trainable.state())
    progress_of(run).write(output, MINE)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.long
def test_a_large_state_is_never_in_memory_twice(tmp_path):
    """300 MB of tensors, as the trainer has them; in a process of its own, whose peak is not an earlier test's."""
    root = Path(__file__).parents[4]
    command = [sys.executable, "-c", LARGE, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50


@pytest.mark.parametrize("position", [0, 40, -1])
def test_a_damaged_one_counts_as_none(output, position):
    progress_of(Run()).write(output, MINE)
    path = output.root / ".job" / "progress"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert read(output) == (None, [])


def test_an_error_while_it_is_written_leaves_the_one_before(output):
    output.save_progress([b"good"])

    def pieces():
        yield b"half"
        raise KeyError

    with pytest.raises(KeyError):
        output.save_progress(pieces())
    with output.open_progress() as file:
        assert file.read() == b"good"
    assert [path.name for path in (output.root / ".job").iterdir() if path.name.startswith(".")] == []


def test_one_that_cannot_be_read_a_second_time_counts_as_none(output, monkeypatch):
    """It is read once to be checked: after that the disk may fail."""
    progress_of(Run()).write(output, MINE)

    class Failing:
        def readline(self):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(OutputFolder, "open_progress", lambda self: nullcontext(Failing()))
    assert read(output) == (None, [])

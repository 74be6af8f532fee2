"""The saved progress of an unfinished job, `OUT/.job/progress`: its format, written and read here alone.

The file is the SHA-256 of the rest, a header (JSON in one line), and the tensors of the training state (safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from engine.core.canonical_json import canonical_json
from engine.results import held_out_rows, history, safetensors_stream
from engine.results.history import StepReport
from engine.results.outcome import Before
from engine.results.output.folder import OutputFolder
from engine.results.output.job_record import JobRecord
from engine.results.state import TrainState, flatten_state, parse_state


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedProgress:
    """Everything by which an interrupted job goes on and ends with the bytes of an undisturbed one."""

    state: TrainState
    history: list[StepReport]
    """Every step of the chain so far."""
    held_out_losses: list[held_out_rows.Row]
    step_hashes: Mapping[str, str]
    """The SHA-256 of each result of an earlier step, by name (`StepResults.hashes`)."""
    origins: list[dict[str, Any]]
    """The devices and versions that trained the task's steps."""
    so_far: Before
    """What the task's processes have done so far, for the report."""

    def write(self, output: OutputFolder, job: JobRecord) -> None:
        """Replace the saved progress in `output` by this one of `job`, atomically, one tensor after the other.

        Raises:
            OutputError: it cannot be written; the one before is still there.
        """
        tensors, scalars = flatten_state(self.state)
        header = {
            "state": scalars,
            "history": history.dump(self.history).decode(),
            "kept": self.step_hashes,
            "job": job.described(),
            "origins": self.origins,
            "so_far": self.so_far.described(),
        }
        if self.held_out_losses:
            header["heldout"] = held_out_rows.dump(self.held_out_losses).decode()
        output.save_progress(chain([canonical_json(header) + b"\n"], safetensors_stream.pieces(tensors)))

    @classmethod
    def parse(cls, header: Mapping[str, Any], tensors: bytes) -> SavedProgress:
        """Return the progress of which `read` gave the parts. What earlier versions did not save is empty.

        Raises:
            CheckpointError: the training state is malformed.
        """
        return cls(
            state=parse_state(tensors, header["state"]),
            history=history.parse(header["history"].encode()),
            held_out_losses=held_out_rows.parse(header.get("heldout", "").encode()),
            step_hashes=header.get("kept", {}),
            origins=header["origins"],
            so_far=Before.parse(header["so_far"]) if "so_far" in header else Before(),
        )


def read(output: OutputFolder, job: JobRecord, say: Callable[[str], None]) -> tuple[dict[str, Any], bytes] | None:
    """Return the header and the tensors of the progress that `job` saved in `output`; None where it begins again.

    That is where nothing is saved, or a bit of it is wrong, or a result of an earlier step that it names is gone or
    damaged, or it is another job's. (The lock and the record keep other jobs away, except where a file system's locks
    fail.) `say` takes a line about the last two.
    """
    with output.open_progress() as file:
        if file is None:
            return None
        header: dict[str, Any] = json.loads(file.readline())
        for name, digest in header.get("kept", {}).items():
            if not output.step_file(digest).is_whole():
                say(f"{name}, which was made at an earlier step, is gone or damaged: this task begins again")
                return None
        if not job.is_same(JobRecord.of_record(header.get("job"))):
            say("the saved progress here is not this task's: this task begins again")
            return None
        return header, file.read()

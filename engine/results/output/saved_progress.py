"""The saved progress of an unfinished job, `OUT/.job/progress`. Only this module knows its format.

The file is the SHA-256 of the rest, a header (JSON in one line), and the tensors of the training state (safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from engine.core.canonical_json import canonical_json
from engine.results import held_out_rows, history, safetensors_file
from engine.results.history import StepReport
from engine.results.outcome import Before
from engine.results.output.folder import OutputFolder
from engine.results.output.job_record import JobRecord
from engine.results.state import TrainState, flatten_state, parse_state


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedProgress:
    """Everything that an interrupted job needs to continue and end with the same bytes as without interruption."""

    state: TrainState
    history: list[StepReport]
    """Every step of the chain so far."""
    held_out_losses: list[held_out_rows.Row]
    step_hashes: Mapping[str, str]
    """The SHA-256 of each result of an earlier step, by name (`StepResults.hashes`)."""
    origins: list[dict[str, Any]]
    """The devices and versions that trained the task's steps (`provenance.extended_origins`)."""
    so_far: Before
    """The work of the job's runs so far, for the report."""

    def write(self, output: OutputFolder, job: JobRecord) -> None:
        """Replace the saved progress of `job` in `output` atomically, writing one tensor after the other.

        Raises:
            OutputError: it cannot be written; the previous progress is still there.
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
        output.save_progress(chain([canonical_json(header) + b"\n"], safetensors_file.pieces(tensors)))

    @classmethod
    def parse(cls, header: Mapping[str, Any], tensors: bytes) -> SavedProgress:
        """Return the progress from the header and tensors of `read`. What earlier versions did not save is empty.

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
    """Return the header and the tensors of the progress that `job` saved in `output`; None if it has to start over.

    It has to if nothing is saved or the file is damaged, and, with a line to `say`, if a result of an earlier step that
    it names is missing or damaged, or if it is another job's. (The lock and the record prevent the last, unless the
    file system's locks fail.)
    """
    with output.open_progress() as file:
        if file is None:
            return None
        try:
            header, tensors = json.loads(file.readline()), file.read()
        except (OSError, ValueError):  # it was whole a moment ago: the disk fails, or somebody writes to it
            return None
        for name, digest in header.get("kept", {}).items():
            if not output.step_file(digest).is_whole():
                say(f"{name}, a result of an earlier step, is missing or damaged: this task starts over")
                return None
        if not job.is_same(JobRecord.of_record(header.get("job"))):
            say("the saved progress belongs to another task: this task starts over")
            return None
        return header, tensors

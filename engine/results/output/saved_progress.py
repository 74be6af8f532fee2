"""The saved progress of an unfinished job, `OUT/.job/progress`. Only this module knows its format.

The file is the SHA-256 of the rest, and a JSON value. That names the files of the training state's tensors, which were
written to `OUT/.job/kept/` before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.core.canonical_json import canonical_json
from engine.results import held_out_rows, history
from engine.results.history import StepReport
from engine.results.outcome import Before
from engine.results.output.folder import OutputFolder
from engine.results.output.job_record import JobRecord
from engine.results.output.step_results import SavedState


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedProgress:
    """Everything that an interrupted job needs to continue and end with the same bytes as without interruption."""

    state: SavedState
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
        """Replace the saved progress of `job` in `output` atomically. All files that it names are there already.

        Raises:
            OutputError: it cannot be written; the previous progress is still there.
        """
        header = {
            "state": self.state.scalars,
            "state_files": self.state.files,
            "history": history.dump(self.history).decode(),
            "kept": self.step_hashes,
            "job": job.described(),
            "origins": self.origins,
            "so_far": self.so_far.described(),
        }
        if self.held_out_losses:
            header["heldout"] = held_out_rows.dump(self.held_out_losses).decode()
        output.save_progress(canonical_json(header))

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> SavedProgress:
        """Return the progress from the header that `read` returned. What earlier versions did not save is empty."""
        return cls(
            state=SavedState(header["state"], header["state_files"]),
            history=history.parse(header["history"].encode()),
            held_out_losses=held_out_rows.parse(header.get("heldout", "").encode()),
            step_hashes=header.get("kept", {}),
            origins=header["origins"],
            so_far=Before.parse(header["so_far"]) if "so_far" in header else Before(),
        )


def read(output: OutputFolder, job: JobRecord, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the header of the progress that `job` saved in `output`; None if the job has to start over.

    It has to if nothing is saved or the file is damaged, and, with a line to `say`, if a result of an earlier step that
    it names is missing or damaged, if it has the format of an earlier version, or if it is another job's. (The lock and
    the record prevent the last, unless the file system's locks fail.) The state's files are verified when they are
    read.
    """
    data = output.read_progress()
    if data is None:
        return None
    header: dict[str, Any] = json.loads(data.partition(b"\n")[0])  # earlier versions wrote the tensors behind it
    for name, digest in header.get("kept", {}).items():
        if not output.stored(digest).is_whole():
            say(f"{name}, a result of an earlier step, is missing or damaged: this task starts over")
            return None
    if not job.is_same(JobRecord.of_record(header.get("job"))):
        say("the saved progress belongs to another task: this task starts over")
        return None
    if "state_files" not in header:
        say("the saved progress is of an earlier version of this program: this task starts over")
        return None
    return header

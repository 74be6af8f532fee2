"""One run of a job: what is given, what is in memory while it trains, where it goes on, and how progress is kept."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import torch

from engine.core.canonical_json import canonical_json
from engine.core.console import say
from engine.core.errors import DeviceError
from engine.core.process.signals import Stop
from engine.job.job import Job
from engine.models.family import Family
from engine.results import held_out_rows, provenance
from engine.results import history as history_file
from engine.results.checkpoint import Checkpoint
from engine.results.history import DIGEST_STEPS, StepReport
from engine.results.outcome import Before, Outcome
from engine.results.output.folder import OutputFolder
from engine.results.output.job_record import JobRecord
from engine.results.output.step_results import Kept, load_progress
from engine.results.state import TrainState, dump_state, parse_state, weights_digest
from engine.results.trackers.jsonl import ProgressLog
from engine.task.settings import Settings
from engine.training.assembly import assemble
from engine.training.distributed.group import Processes
from engine.training.methods import registry as methods
from engine.training.methods.method import Trainable
from engine.training.methods.warm_start import WarmStart
from engine.training.trainer import Notice, Trainer

_MAX_SAVING_SHARE: Final = 0.05
"""Of the training's time, however slow the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of the job: what is given, and where it goes."""

    settings: Settings
    output: OutputFolder
    stop: Stop
    outcome: Outcome
    device: torch.device
    job: Job
    processes: Processes
    log: ProgressLog


@dataclass(frozen=True, slots=True)
class Training:
    """What is in memory while a job trains."""

    family: Family
    trainable: Trainable
    trainer: Trainer
    history: list[StepReport]
    kept: Kept
    held_out_losses: list[held_out_rows.Row] = field(default_factory=list)
    origins: list[dict[str, Any]] = field(default_factory=list)
    """The devices and versions that trained this task's steps (`world.extended_origins`)."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """What to go on from."""

    state: TrainState | None
    history: list[StepReport]
    held_out_losses: list[held_out_rows.Row]
    kept: Kept
    """What the task has kept of its steps."""
    origins: list[dict[str, Any]] = field(default_factory=list)


def start_training(session: Session, family: Family) -> Training:
    """Prepare what is trained, and go on from the saved progress, the checkpoint, given weights, or from nothing."""
    job, outcome = session.job, session.outcome
    saved = _saved_training(session)
    trainable = methods.attach(
        family,
        job.task,
        session.device,
        start=saved.state.start if saved.state else None,
        warm_start=job.parent if isinstance(job.parent, WarmStart) and not saved.state else None,
    )
    trainer = assemble(job.task, job.step_range, family, trainable, session.device, processes=session.processes)
    if saved.state:
        trainer.restore(saved.state)
    outcome.global_step = outcome.resumed_from_step = trainer.step
    if trainer.step > job.step_range.start_step:
        say(f"going on at step {trainer.step}, where this task was interrupted")
    origins = provenance.extended_origins(saved.origins, trainer.step, provenance.origin(session.device))
    if len(origins) > max(1, len(saved.origins)):
        say(
            "note: the steps before were trained on another device or with other versions, so the result's bits are "
            "those of neither alone: its lineage says which steps were trained where"
        )
    return Training(family, trainable, trainer, saved.history, saved.kept, saved.held_out_losses, origins)


def _saved_training(session: Session) -> _Saved:
    """The saved progress, else the checkpoint to continue, else nothing."""
    payload = session.processes.bytes_from_first(lambda: _own_progress(session))
    if payload is not None:
        header, _, tensors = payload.partition(b"\n")
        saved = json.loads(header)
        if "so_far" in saved:  # an older version did not tell
            session.outcome.before = Before.parse(saved["so_far"])
        return _Saved(
            parse_state(tensors, saved["state"]),
            history_file.parse(saved["history"].encode()),
            held_out_rows.parse(saved.get("heldout", "").encode()),
            Kept(session.output, saved.get("kept")),
            saved["origins"],
        )
    kept, parent = Kept(session.output), session.job.parent
    if isinstance(parent, Checkpoint):
        state = parse_state(parent.state_tensors, parent.state_scalars)
        rows = held_out_rows.parse(parent.held_out_losses)
        return _Saved(state, history_file.parse(parent.history), rows, kept)
    return _Saved(None, [], [], kept)


def _own_progress(session: Session) -> bytes | None:
    """This job's saved progress. The lock and the record keep others' away, except where a file system's locks fail."""
    payload = load_progress(session.output, say)
    if payload is None or session.job.record.is_same(
        JobRecord.of_record(json.loads(payload.partition(b"\n")[0]).get("job"))
    ):
        return payload
    say("the saved progress here is not this task's: this task begins again")
    return None


class ProgressSaver:
    """Saves the exact progress now and then, and when asked to. Only the first process writes."""

    def __init__(self, session: Session, training: Training) -> None:
        self._session = session
        self._training = training
        self._saved_at = time.monotonic()
        self._cost = 0.0

    def save(self) -> None:
        """Save now; the state must be one after a whole number of steps.

        Raises:
            NonFiniteError: the last update has left float32.
        """
        start = time.monotonic()
        self._require_finite()  # or the last saved progress stays
        if self._session.processes.is_first:
            tensors, scalars = dump_state(self._training.trainer.state())
            header = {
                "state": scalars,
                "history": history_file.dump(self._training.history).decode(),
                "kept": self._training.kept.hashes,
                "job": asdict(self._session.job.record),
                "origins": self._training.origins,
                "so_far": self._session.outcome.so_far().described(),
            }
            if self._training.held_out_losses:
                header["heldout"] = held_out_rows.dump(self._training.held_out_losses).decode()
            self._session.output.save_progress(canonical_json(header) + b"\n" + tensors)
            self._training.kept.tidy()
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - start

    def finish(self) -> None:
        """Save the end of the training.

        Raises:
            DeviceError: the processes' weights differ.
        """
        self.require_sound()
        self.save()

    def require_sound(self) -> None:
        """Before anything is made of the weights, in all processes.

        Raises:
            NonFiniteError: the last update has left float32.
            DeviceError: the processes' weights differ.
        """
        self._require_finite()
        if self._session.processes.world_size > 1:
            self._agreed_digest()

    def _require_finite(self) -> None:
        self._training.trainable.require_finite(self._training.trainer.step)

    def _agreed_digest(self) -> str:
        """The digest of the weights, after the same step in all processes."""
        digest = weights_digest(self._training.trainable.state())
        step = self._training.trainer.step
        # A machine whose arithmetic or memory is wrong: no bit of it may be saved.
        self._session.processes.require_same(f"the digest of the weights after step {step}", digest, DeviceError)
        return digest

    def notice(self) -> Notice:
        """What to tell the other processes: a signal, and whether the last save is old enough, and cost little."""
        due = max(self._session.settings.save_seconds, self._cost / _MAX_SAVING_SHARE)
        is_due = self._session.processes.is_first and time.monotonic() - self._saved_at >= due
        return Notice(self._session.stop.signum, is_due)

    def after_step(self, report: StepReport) -> StepReport:
        """Do what the processes agreed on during the step, and add what belongs into the history.

        Raises:
            Interrupted: the job is to stop; its progress is saved.
            DeviceError: the processes' weights differ.
        """
        noticed, stop, processes = self._training.trainer.noticed, self._session.stop, self._session.processes
        signum = processes.decided(stop.signum, noticed.signum)
        is_recorded = report.step % DIGEST_STEPS == 0
        if is_recorded or (processes.world_size > 1 and (noticed.save or signum)):
            digest = self._agreed_digest()
            report = replace(report, weights=digest) if is_recorded else report
        self._training.history.append(report)
        if noticed.save and not signum:
            self.save()
        stop.check(self.save, signum=signum)
        return report

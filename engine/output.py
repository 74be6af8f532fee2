"""The output folder: one job at a time, nothing of another job's touched, progress that survives a kill.

`OUT/.job/` belongs to the job under way: `record.json` says which job that is, `progress` holds its exact state, and
results are built there before they are renamed into place. It is removed last, so its absence means that no job is
unfinished.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import storage
from .errors import OutputError, TemporaryError

CHECKPOINT = "checkpoint"
VALIDATION = "validation"
RESULT = "result.json"
PROGRESS_LOG = "progress.jsonl"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Which job a result or an unfinished progress belongs to."""

    task_digest: str
    parent: str | None


class Claim(enum.Enum):
    """What a job finds when it takes the output folder."""

    FRESH = "fresh"
    CONTINUES = "continues"
    """This very job was interrupted here; its progress, if it had saved any, is exact."""
    FINISHED = "finished"
    """This very job's result is already there."""


class OutputFolder:
    """The locked output folder of one job. Use as `with OutputFolder.lock(path) as output:`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = root / CHECKPOINT
        self.validation = root / VALIDATION
        self._job = root / ".job"
        self._record = self._job / "record.json"
        self._progress = self._job / "progress"
        self._kept = self._job / "kept"
        self.claimed = False
        self.refused = False
        """What lies here is another job's: nothing may be touched."""

    @classmethod
    @contextlib.contextmanager
    def lock(cls, root: Path) -> Iterator[OutputFolder]:
        """Create the folder if needed and hold it for this process alone.

        Raises:
            TemporaryError: another job holds it.
            OutputError: it cannot be created, or nothing can be written to it.
        """
        with storage.writing_to(root):
            if not root.exists():
                root.mkdir(parents=True)
                root.chmod(storage.FOLDER_MODE)  # whatever the umask: its files are for everyone
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(descriptor, root)
            if not os.access(root, os.W_OK | os.X_OK):
                raise OutputError(f"cannot write to {root}: make it writable for the user that runs the job")
            output = cls(root)
            with storage.writing_to(root):
                for target in (output.checkpoint, output.validation):
                    storage.recover_folder(target, output._replaced(target))
            yield output
        finally:
            os.close(descriptor)

    def _replaced(self, target: Path) -> Path:
        return self._job / f"{target.name}.replaced"

    @property
    def is_untouched(self) -> bool:
        """No result and no unfinished job lie here."""
        return not any(path.exists() for path in (self.checkpoint, self.validation, self._job))

    def claim(self, job: JobRecord, *, in_place: bool, overwrite: bool, request: str = "") -> Claim:
        """Take the folder for `job`, touching nothing unless it is free, this job's own, or `overwrite` is set.

        Args:
            job: what is about to run.
            request: a digest of what was asked for, known before anything is found: see `is_asked_by`.
            in_place: the job continues from this folder's own `checkpoint/`, which its result then replaces.
            overwrite: other results and other jobs' progress may be replaced.

        Raises:
            OutputError: another job's result or unfinished progress lies here.
        """
        found = self.look(job, in_place=in_place, overwrite=overwrite)
        if found is Claim.FINISHED:
            self.settle()
            return found
        self.claimed = True
        with storage.writing_to(self.root):
            (self.root / RESULT).unlink(missing_ok=True)  # it tells of an earlier run
            if found is Claim.CONTINUES:
                return found
            storage.make_folder(self._job, owner=self.root)
            (self.root / PROGRESS_LOG).unlink(missing_ok=True)
            storage.write_file(self._record, _json_bytes(asdict(job) | {"request": request}), owner=self.root)
        return found

    def look(self, job: JobRecord, *, in_place: bool, overwrite: bool) -> Claim:
        """What `claim` would find, with the same arguments and errors. Changes nothing, and needs no lock."""
        record, published = self._read_record(), self._published()
        completed = record is not None and record == published
        same_again = in_place and completed and record is not None and record.task_digest == job.task_digest
        if published == job or same_again:
            return Claim.FINISHED
        # Without progress there is nothing to lose: the job failed before it trained a step.
        unfinished = record if self._progress.exists() and not completed else None
        if not overwrite:
            self._refuse_foreign(job, unfinished, in_place=in_place)
        return Claim.CONTINUES if unfinished == job else Claim.FRESH

    def settle(self) -> None:
        """Clear up after a job that was killed between publishing its result and clearing up."""
        record = self._read_record()
        if record is not None and record == self._published():
            self.complete()
        elif self._job.is_dir() and not any(self._job.iterdir()):  # the record, removed last, is gone already
            with storage.writing_to(self.root):
                self._job.rmdir()

    def is_asked_by(self, request: str) -> bool:
        """Whether the unfinished job here came of the same request: then its failures may be recorded here."""
        found = _read_json(self._record)
        return isinstance(found, dict) and found.get("request") == request

    def is_free_for(self, request: str, *, in_place: bool) -> bool:
        """Whether nothing here can be another job's, nor this one's finished result; before `claim` knows for certain.

        Args:
            request: as in `is_asked_by`.
            in_place: as in `claim`.
        """
        if self.is_untouched or self.is_asked_by(request):
            return True
        return in_place and not self._job.exists() and not (self.checkpoint / "FINISH").exists()

    def tells_of(self, digest: str) -> bool:
        """Whether `result.json` tells that the checkpoint `digest` is done."""
        found = _read_json(self.root / RESULT)
        return isinstance(found, dict) and found.get("status") == "done" and found.get("checkpoint_digest") == digest

    def _refuse_foreign(self, job: JobRecord, unfinished: JobRecord | None, *, in_place: bool) -> None:
        advice = "choose another output folder, or pass --overwrite to replace it"
        self.refused = True
        if unfinished is not None and unfinished != job:
            raise OutputError(f"{self.root} holds the unfinished progress of another task; {advice}")
        if unfinished == job or in_place:
            self.refused = False
            return
        for folder in (self.checkpoint, self.validation):
            if folder.exists():
                raise OutputError(f"{folder} is another job's result; {advice}")
        self.refused = False

    def _read_record(self) -> JobRecord | None:
        return _job_record(_read_json(self._record))

    def _published(self) -> JobRecord | None:
        return _job_record(_read_json(self.checkpoint / "manifest.json"))

    def save_progress(self, payload: bytes) -> None:
        """Replace the job's saved progress atomically."""
        with storage.writing_to(self.root):
            storage.write_file(self._progress, storage.seal(payload), owner=self.root)

    def load_progress(self) -> bytes | None:
        """The job's saved progress, or None where there is none or a bit of it is wrong: then it starts again."""
        try:
            return storage.unseal(self._progress.read_bytes())
        except OSError:
            return None

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a file for later, durably, under its SHA-256."""
        with storage.writing_to(self.root):
            if not self._kept.is_dir():
                storage.make_folder(self._kept, owner=self.root)
                storage.sync_folder(self._job)
            storage.write_file(self._kept / digest, data, owner=self.root)

    def kept(self, digest: str) -> storage.Stored:
        """A kept file, if it is still there."""
        return storage.Stored(self._kept / digest, digest)

    def keep_only(self, digests: Set[str]) -> None:
        """Delete all other kept files."""
        with storage.writing_to(self.root):
            for path in self._kept.iterdir() if self._kept.is_dir() else ():
                if path.name not in digests:
                    path.unlink()

    def publish(self, target: Path, files: Mapping[str, storage.Contents], *, last: str) -> None:
        """Put a folder with these files in place of `target`, whole or not at all; the file `last` is written last.

        A name may have one folder before it. Raises OutputError also where a stored file is not whole.
        """
        built = self._job / target.name
        with storage.writing_to(self.root):
            storage.make_folder(built, owner=self.root)
            inner = sorted({(built / name).parent for name in files} - {built})
            for folder in inner:
                storage.make_folder(folder, owner=self.root)
            for name in (*(name for name in files if name != last), last):
                storage.write_new(built / name, files[name], owner=self.root)
            for folder in inner:
                storage.sync_folder(folder)
            storage.publish_folder(built, target, self._replaced(target))

    def complete(self) -> None:
        """Forget the job under way: its result is published."""
        with storage.writing_to(self.root):
            # The record goes last: a folder without it that is half removed would look like a foreign job.
            for path in self._job.iterdir():
                if path != self._record:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.rmtree(self._job)

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside the two folders, whole or not at all."""
        with storage.writing_to(self.root):
            storage.write_file(self.root / name, data, owner=self.root)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        self.write(RESULT, _json_bytes(result))


def _lock(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TemporaryError(f"another job is running on {root}; wait for it or choose another folder") from None


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _job_record(value: Any) -> JobRecord | None:
    if not isinstance(value, dict) or not isinstance(value.get("task_digest"), str):
        return None
    parent = value.get("parent")
    return JobRecord(value["task_digest"], parent if isinstance(parent, str) else None)

"""The output folder: one job at a time, nothing of another job's touched, progress that survives a kill.

`OUT/.job/` belongs to the job under way: `record.json` says which job that is, `progress` holds its exact state, and
results are built there before they are renamed into place. It is removed last, so its absence means that no job is
unfinished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from engine.core.errors import OutputError
from engine.core.files import atomic_files, folder_lock
from engine.results.output.contents import RESULT, Claim, OutputContents, require_folder
from engine.results.output.job_record import JobRecord

PROGRESS_LOG: Final = "progress.jsonl"
REPORT: Final = "report.html"


class OutputFolder(OutputContents):
    """The locked output folder of one job. Use as `with OutputFolder.lock(path) as output:`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._kept = self._job / "kept"
        self.claimed = False
        self.is_changed = False
        """Something was written here."""

    @classmethod
    @contextlib.contextmanager
    def lock(cls, root: Path) -> Iterator[OutputFolder]:
        """Create the folder if needed and hold it for this process alone.

        Raises:
            TemporaryError: another job holds it.
            OutputError: it cannot be created, or nothing can be written to it.
        """
        with atomic_files.writing_to(root):
            if not root.is_dir():
                root.mkdir(parents=True)
                root.chmod(atomic_files.FOLDER_MODE)  # whatever the umask: its files are for everyone
        if not os.access(root, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write to {root}: make it writable for the user that runs the job")
        output = cls(root)
        with folder_lock.held(root, stays=lambda: output.is_changed):
            require_folder(output._job)
            with atomic_files.writing_to(root):
                for target in (output.checkpoint, output.validation):
                    atomic_files.recover_folder(target, output._replaced(target))
            yield output

    def _replaced(self, target: Path) -> Path:
        return self._job / f"{target.name}.replaced"

    def claim(
        self,
        job: JobRecord,
        *,
        in_place: bool,
        overwrite: bool,
        request: str = "",
        found: Mapping[str, Any] | None = None,
    ) -> Claim:
        """Take the folder for `job`, touching nothing unless it is free, this job's own, or `overwrite` is set.

        Args:
            job: what is about to run.
            request: a digest of what was asked for, known before anything is found: see `is_asked_by`.
            found: what else is recorded: revisions for a restart (see `resolved`), versions and device for people.
            in_place: the job continues from this folder's own `checkpoint/`, which its result then replaces.
            overwrite: other results and other jobs' progress may be replaced.

        Raises:
            OutputError: another job's result or unfinished progress lies here.
        """
        claim = self.look(job, in_place=in_place, overwrite=overwrite)
        if claim is Claim.FINISHED:
            self.settle()
            return claim
        self.claimed = self.is_changed = True
        with atomic_files.writing_to(self.root):
            (self.root / RESULT).unlink(missing_ok=True)  # it tells of an earlier run
            if claim is Claim.CONTINUES:
                return claim
            atomic_files.make_folder(self._job, owner=self.root)
            (self.root / PROGRESS_LOG).unlink(missing_ok=True)
            record = {**(found or {}), **asdict(job), "request": request}
            atomic_files.write_file(self._record, _json_bytes(record), owner=self.root)
        return claim

    def settle(self) -> None:
        """Clear up after a job that was killed between publishing its result and clearing up."""
        record = self._read_record()
        if record is not None and record.is_same(self._published()):
            self.complete()
        elif self._job.is_dir() and not any(self._job.iterdir()):  # the record, removed last, is gone already
            with atomic_files.writing_to(self.root):
                self._job.rmdir()

    def save_progress(self, payload: bytes) -> None:
        """Replace the job's saved progress atomically."""
        with atomic_files.writing_to(self.root):
            atomic_files.write_file(self._progress, atomic_files.seal(payload), owner=self.root)

    def load_progress(self) -> bytes | None:
        """The job's saved progress, or None where there is none or a bit of it is wrong: then it starts again."""
        try:
            sealed = atomic_files.read_plain(self._progress, sys.maxsize)
        except OSError:
            return None
        return None if sealed is None else atomic_files.unseal(sealed)

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a file for later, durably, under its SHA-256."""
        with atomic_files.writing_to(self.root):
            if not self._kept.is_dir():
                atomic_files.make_folder(self._kept, owner=self.root)
                atomic_files.sync_folder(self._job)
            atomic_files.write_file(self._kept / digest, data, owner=self.root)

    def kept(self, digest: str) -> atomic_files.Stored:
        """A kept file, if it is still there."""
        return atomic_files.Stored(self._kept / digest, digest)

    def keep_only(self, digests: Set[str]) -> None:
        """Delete all other kept files."""
        with atomic_files.writing_to(self.root):
            for path in self._kept.iterdir() if self._kept.is_dir() else ():
                if path.name not in digests:
                    path.unlink()

    def publish(self, target: Path, files: Mapping[str, atomic_files.Contents], *, last: str) -> None:
        """Put a folder with these files in place of `target`, whole or not at all; the file `last` is written last.

        A name may have one folder before it. Raises OutputError also where a stored file is not whole.
        """
        built = self._job / target.name
        with atomic_files.writing_to(self.root):
            atomic_files.make_folder(built, owner=self.root)
            inner = sorted({(built / name).parent for name in files} - {built})
            for folder in inner:
                atomic_files.make_folder(folder, owner=self.root)
            for name in (*(name for name in files if name != last), last):
                atomic_files.write_new(built / name, files[name], owner=self.root)
            for folder in inner:
                atomic_files.sync_folder(folder)
            atomic_files.publish_folder(built, target, self._replaced(target))

    def complete(self) -> None:
        """Forget the job under way: its result is published."""
        with atomic_files.writing_to(self.root):
            # The record goes last: a folder without it that is half removed would look like a foreign job.
            for path in self._job.iterdir():
                if path != self._record:
                    atomic_files.remove(path)
            shutil.rmtree(self._job)

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside the two folders, whole or not at all."""
        self.is_changed = True
        with atomic_files.writing_to(self.root):
            atomic_files.write_file(self.root / name, data, owner=self.root)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        self.write(RESULT, _json_bytes(result))


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

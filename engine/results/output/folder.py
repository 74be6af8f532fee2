"""The output folder: one job at a time locks it, other jobs' files are not touched, and progress survives a kill.

`OUT/.job/` belongs to the unfinished job: `record.json` identifies the job, `progress` names the files of its exact
state, which are in `kept/` under their SHA-256 with other large files of the result, and results are built there before
they are renamed into place. It is removed last, so if it is absent, no job is unfinished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path, PurePath
from typing import Any, Final

from engine.core.errors import OutputError
from engine.core.files import atomic_files, folder_lock
from engine.results.output import preview
from engine.results.output.contents import FINISH_NOW, RESULT, Claim, OutputContents, require_folder
from engine.results.output.job_record import JobRecord

PROGRESS_LOG: Final = "progress.jsonl"
REPORT: Final = "report.html"
_MAX_PROGRESS_BYTES: Final = 4 << 30
"""Upper bound for the saved progress. Most of it is the history: 100 bytes for each step."""


class OutputFolder(OutputContents):
    """The locked output folder of one job. Use as `with OutputFolder.lock(path) as output:`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._kept = self._job / "kept"
        self.claimed = False
        self.is_changed = False
        """True if anything was written to the folder."""

    @classmethod
    @contextlib.contextmanager
    def lock(cls, root: Path) -> Iterator[OutputFolder]:
        """Create the folder if needed, and lock it for this process.

        Raises:
            TemporaryError: another job has locked it.
            OutputError: it cannot be created, or nothing can be written to it.
        """
        with atomic_files.writing_to(root):
            if not root.is_dir():
                root.mkdir(parents=True)
                root.chmod(atomic_files.FOLDER_MODE)  # independent of the umask: everyone may read the results
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
        """Claim the folder for `job`. It must be free or this job's own, unless `overwrite` is set.

        Args:
            job: the job that is about to run.
            request: a digest of the request, known before anything is resolved: see `is_same_request`.
            found: what else is recorded: revisions for a restart (see `resolved`), versions and device for people.
            in_place: whether the job continues from this folder's own `checkpoint/`, which its result then replaces.
            overwrite: whether other results and other jobs' progress may be replaced.

        Raises:
            OutputError: another job's result or unfinished progress is in the folder, which stays unchanged.
        """
        claim = self.look(job, in_place=in_place, overwrite=overwrite)
        if claim is Claim.FINISHED:
            self.settle()
            return claim
        self.claimed = self.is_changed = True
        with atomic_files.writing_to(self.root):
            (self.root / RESULT).unlink(missing_ok=True)  # an earlier run's
            if claim is Claim.CONTINUES:
                return claim
            preview.remove(self.root)
            atomic_files.make_folder(self._job, owner=self.root)
            (self.root / PROGRESS_LOG).unlink(missing_ok=True)
            record = {**(found or {}), **job.described(), "request": request}
            atomic_files.write_file(self._record, _json_bytes(record), owner=self.root)
        return claim

    def settle(self) -> None:
        """Clean up after a job that was killed between publishing its result and cleaning up."""
        record = self._read_record()
        if record is not None and record.is_same(self._published()):
            self.complete()
        elif self._job.is_dir() and not any(self._job.iterdir()):  # the record, removed last, is already gone
            with atomic_files.writing_to(self.root):
                self._job.rmdir()

    def save_progress(self, data: bytes) -> None:
        """Replace the job's saved progress atomically. For the content see `saved_progress.py`."""
        with atomic_files.writing_to(self.root):
            atomic_files.write_file(self._progress, atomic_files.seal(data), owner=self.root)

    def read_progress(self) -> bytes | None:
        """Return the job's saved progress; None if there is none, or it is damaged."""
        with contextlib.suppress(OSError):
            data = atomic_files.read_plain(self._progress, _MAX_PROGRESS_BYTES)
            return None if data is None else atomic_files.unseal(data)
        return None

    def store(self, pieces: Iterable[bytes | memoryview]) -> atomic_files.Stored:
        """Write a file of the job's result, or of its state, and sync it to disk, before it is published.

        Its name in `.job/kept/` is its SHA-256. It stays until `delete_stored_except`, or until the job is complete.
        """
        with atomic_files.writing_to(self.root):
            if not self._kept.is_dir():
                atomic_files.make_folder(self._kept, owner=self.root)
                atomic_files.sync_folder(self._job)
            return atomic_files.store(self._kept, pieces, owner=self.root)

    def stored(self, digest: str) -> atomic_files.Stored:
        """Return a reference to a file that was written by `store`. The file may be missing."""
        return atomic_files.Stored(self._kept / digest, digest)

    def delete_stored_except(self, digests: Set[str]) -> None:
        """Delete all files that were written by `store` except these."""
        with atomic_files.writing_to(self.root):
            for path in self._kept.iterdir() if self._kept.is_dir() else ():
                if path.name not in digests:
                    path.unlink()

    def publish(self, target: Path, files: Mapping[str, atomic_files.Contents], *, last: str) -> None:
        """Replace `target` by a folder with these files, whole or not at all; the file `last` is written last.

        Names may contain folders. Files from `store` get a second name and are not copied.

        Raises:
            OutputError: the disk refuses, or a stored file is damaged.
        """
        built = self._job / target.name
        with atomic_files.writing_to(self.root):
            atomic_files.make_folder(built, owner=self.root)
            inner = sorted({built / folder for name in files for folder in PurePath(name).parents[:-1]})
            for folder in inner:
                atomic_files.make_folder(folder, owner=self.root)
            for name in (*(name for name in files if name != last), last):
                self._place(built / name, files[name])
            for folder in inner:
                atomic_files.sync_folder(folder)
            atomic_files.publish_folder(built, target, self._replaced(target))

    def record_finish(self, step: int) -> None:
        """Write `FINISH_NOW`, so that a job that is killed before its result is published ends early all the same."""
        self.write(FINISH_NOW, f"{step}\n".encode())

    def _place(self, path: Path, data: atomic_files.Contents) -> None:
        # A file of another result is copied: who changes one of two results in place must not change the other.
        if isinstance(data, atomic_files.Stored) and data.path.parent == self._kept:
            atomic_files.link_new(path, data, owner=self.root)
        else:
            atomic_files.write_new(path, data, owner=self.root)

    def complete(self) -> None:
        """Remove `.job/`, the preview and the request to finish: the job's result is published."""
        preview.remove(self.root)
        with contextlib.suppress(OSError):  # what a stranger has put there
            atomic_files.remove(self._finish_now)
        with atomic_files.writing_to(self.root):
            # The record is removed last: without it, a half removed folder would look like another job's.
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

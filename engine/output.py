"""The output folder: one job at a time, nothing of another job's touched, progress that survives a kill.

`OUT/.job/` belongs to the job under way: `record.json` says which job that is, `progress` holds its exact state, and
results are built there before they are renamed into place. It is removed last, so its absence means that no job is
unfinished.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from . import folder_lock, storage
from .errors import OutputError
from .record import JobRecord, part

CHECKPOINT = "checkpoint"
VALIDATION = "validation"
MANIFEST = "manifest.json"
RESULT = "result.json"
PROGRESS_LOG = "progress.jsonl"
REPORT = "report.html"
_MAX_JSON_BYTES: Final = 64 << 20
_REPLACING = "choose another output folder, or pass --overwrite to replace it"


class Claim(enum.Enum):
    """What a job finds when it takes the output folder."""

    FRESH = "fresh"
    CONTINUES = "continues"
    """This very job was interrupted here; its progress, if it had saved any, is exact."""
    ANEW = "anew"
    """This very job was interrupted here by a version that did not record all that its bytes depend on."""
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
        with storage.writing_to(root):
            if not root.is_dir():
                root.mkdir(parents=True)
                root.chmod(storage.FOLDER_MODE)  # whatever the umask: its files are for everyone
        if not os.access(root, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write to {root}: make it writable for the user that runs the job")
        output = cls(root)
        with folder_lock.held(root, stays=lambda: output.is_changed):
            _require_folder(output._job)
            with storage.writing_to(root):
                for target in (output.checkpoint, output.validation):
                    storage.recover_folder(target, output._replaced(target))
            yield output

    def _replaced(self, target: Path) -> Path:
        return self._job / f"{target.name}.replaced"

    @property
    def is_untouched(self) -> bool:
        """No result and no unfinished job lie here."""
        return not any(os.path.lexists(path) for path in (self.checkpoint, self.validation, self._job))

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
        with storage.writing_to(self.root):
            (self.root / RESULT).unlink(missing_ok=True)  # it tells of an earlier run
            if claim is Claim.CONTINUES:
                return claim
            storage.make_folder(self._job, owner=self.root)
            (self.root / PROGRESS_LOG).unlink(missing_ok=True)
            record = {**(found or {}), **asdict(job), "request": request}
            storage.write_file(self._record, _json_bytes(record), owner=self.root)
        return claim

    def look(self, job: JobRecord, *, in_place: bool, overwrite: bool) -> Claim:
        """What `claim` would find, with the same arguments and errors. Changes nothing, and needs no lock."""
        record, published = self._read_record(), self._published()
        completed = record is not None and record.is_same(published)
        same_again = in_place and completed and record is not None and record.task_digest == job.task_digest
        if job.is_same(published) or same_again:
            return Claim.FINISHED
        self.refused = True
        for folder in (self.checkpoint, self.validation, self._job):
            _require_folder(folder)
        self.refused = False
        # Without progress there is nothing to lose: the job failed before it trained a step.
        unfinished = record if self._progress.exists() and not completed else None
        if not overwrite:
            self._refuse_foreign(job, unfinished, published, in_place=in_place)
        if unfinished is None or not job.is_same(unfinished):
            return Claim.FRESH
        return Claim.ANEW if unfinished.world is None and job.world is not None else Claim.CONTINUES

    def settle(self) -> None:
        """Clear up after a job that was killed between publishing its result and clearing up."""
        record = self._read_record()
        if record is not None and record.is_same(self._published()):
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

    def resolved(self, request: str, *, result: bool) -> dict[str, Any] | None:
        """What names were resolved to by the unfinished job of the same request or, with `result`, for what lies here.

        Returns:
            `base_model`, `dataset` and `heldout` as a manifest has them, and the `revision` that was asked for.
        """
        if self.is_asked_by(request):
            return part(_read_json(self._record))
        manifest = part(_read_json(self.checkpoint / MANIFEST)) if result else {}
        return {**manifest, "revision": part(self._state(), "settings").get("revision")} if manifest else None

    def tells_of(self, digest: str) -> bool:
        """Whether `result.json` tells that the checkpoint `digest` is done."""
        found = _read_json(self.root / RESULT)
        return isinstance(found, dict) and found.get("status") == "done" and found.get("checkpoint_digest") == digest

    def _refuse_foreign(
        self, job: JobRecord, unfinished: JobRecord | None, published: JobRecord | None, *, in_place: bool
    ) -> None:
        self.refused = True
        if unfinished is not None and not job.is_same(unfinished):
            raise OutputError(self._of_another(job, unfinished))
        if unfinished is not None or in_place:
            self.refused = False
            return
        for folder in (self.checkpoint, self.validation):
            if folder.exists():
                raise OutputError(self._in_the_way(job, folder, published))
        self.refused = False

    def _of_another(self, job: JobRecord, unfinished: JobRecord) -> str:
        if not job.is_of_task(unfinished):
            changed = "".join(f"; {line}" for line in job.changed_since(unfinished))
            return f"{self.root} holds the unfinished progress of another task{changed}; {_REPLACING}"
        return (
            f"{self.root} holds this task's unfinished progress, and what is trained is another now: "
            f"{'; '.join(job.changed_since(unfinished))}; start it as before, choose another output folder, "
            "or pass --overwrite to begin anew"
        )

    def _in_the_way(self, job: JobRecord, folder: Path, published: JobRecord | None) -> str:
        if published is None:
            return f"{folder} is another job's result; {_REPLACING}"
        changed = job.changed_since(published)
        if job.is_of_task(published) and changed:
            return f"{folder} is this task's result of another training: {'; '.join(changed)}; {_REPLACING}"
        step = part(_read_json(self.checkpoint / MANIFEST)).get("global_step")
        known = job.world is not None and published.world is not None
        goes_on = known and not replace(job, curve=None).changed_since(replace(published, curve=None))
        if goes_on and type(step) is int and step < job.max_steps:
            return (
                f"{folder} is another job's result; to continue it from step {step}, add --checkpoint "
                f"{self.checkpoint}; else {_REPLACING}"
            )
        return f"{folder} is another job's result; {_REPLACING}"

    def _read_record(self) -> JobRecord | None:
        return JobRecord.of_record(_read_json(self._record))

    def _published(self) -> JobRecord | None:
        return JobRecord.of_result(_read_json(self.checkpoint / MANIFEST), self._state())

    def _state(self) -> Any:
        return _read_json(self.checkpoint / "state.json")

    def save_progress(self, payload: bytes) -> None:
        """Replace the job's saved progress atomically."""
        with storage.writing_to(self.root):
            storage.write_file(self._progress, storage.seal(payload), owner=self.root)

    def load_progress(self) -> bytes | None:
        """The job's saved progress, or None where there is none or a bit of it is wrong: then it starts again."""
        try:
            sealed = storage.read_plain(self._progress, sys.maxsize)
        except OSError:
            return None
        return None if sealed is None else storage.unseal(sealed)

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
                    storage.remove(path)
            shutil.rmtree(self._job)

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside the two folders, whole or not at all."""
        self.is_changed = True
        with storage.writing_to(self.root):
            storage.write_file(self.root / name, data, owner=self.root)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        self.write(RESULT, _json_bytes(result))


def _require_folder(path: Path) -> None:
    """Refuse what is not a folder of its own where the job has one: nothing is written through a link."""
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
        return
    what = f"a link to {path.readlink()}" if path.is_symlink() else "a file"
    raise OutputError(f"{path} is {what}, where the job has a folder of its own: remove it, or choose another folder")


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _read_json(path: Path) -> Any:
    try:
        data = storage.read_plain(path, _MAX_JSON_BYTES)
        return None if data is None else json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None

"""Read the contents of an output folder, without a lock or changes, and decide whether a job may use the folder."""

from __future__ import annotations

import enum
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from engine.core.errors import OutputError
from engine.core.files import atomic_files
from engine.core.messages import plural
from engine.results.output.job_record import JobRecord, object_at

MANIFEST: Final = "manifest.json"
RESULT: Final = "result.json"
FINISH_NOW: Final = "FINISH_NOW"
"""The file by which a user or another program asks the job to end after its current step."""
_MAX_REQUEST_BYTES: Final = 100
_MAX_JSON_BYTES: Final = 64 << 20
_MAX_NAMED: Final = 3
_REPLACING: Final = "choose another output folder, or pass --overwrite to replace it"


class Claim(enum.Enum):
    """The state of the output folder that a job claims."""

    FRESH = "fresh"
    CONTINUES = "continues"
    """The same job was interrupted here; its saved progress, if there is any, is exact."""
    ANEW = "anew"
    """The same job was interrupted here by a version that did not record everything that its bytes depend on."""
    FINISHED = "finished"
    """The job's result is already there."""


class OutputContents:
    """An output folder, read only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = root / "checkpoint"
        self.validation = root / "validation"
        self.refused = False
        """True if the folder holds another job's result or progress, so that nothing in it may be changed."""
        self._job = root / ".job"
        self._record = self._job / "record.json"
        self._progress = self._job / "progress"
        self._finish_now = root / FINISH_NOW

    @property
    def is_untouched(self) -> bool:
        """True if the folder holds neither a result nor an unfinished job."""
        return not any(os.path.lexists(path) for path in (self.checkpoint, self.validation, self._job))

    def look(self, job: JobRecord, *, in_place: bool, overwrite: bool) -> Claim:
        """Return what `OutputFolder.claim` would return, with the same arguments and errors. Needs no lock."""
        record, published = self._read_record(), self._published()
        completed = record is not None and record.is_same(published)
        same_again = in_place and completed and record is not None and record.task_digest == job.task_digest
        if job.is_same(published) or same_again:
            return Claim.FINISHED
        self.refused = True
        for folder in (self.checkpoint, self.validation, self._job):
            require_folder(folder)
        # Without saved progress nothing can be lost: the job failed before it trained a step.
        unfinished = record if self._progress.exists() and not completed else None
        if not overwrite:
            self._refuse_foreign(job, unfinished, published, in_place=in_place)
        self.refused = False
        if unfinished is None or not job.is_same(unfinished):
            return Claim.FRESH
        return Claim.ANEW if unfinished.invariants is None and job.invariants is not None else Claim.CONTINUES

    def is_same_request(self, request: str) -> bool:
        """Return whether the folder's unfinished job came from the same request, so that failures may be recorded."""
        found = _read_json(self._record)
        return isinstance(found, dict) and found.get("request") == request

    def is_free_for(self, request: str, *, in_place: bool) -> bool:
        """Return whether the folder certainly holds nothing of another job, nor this job's finished result.

        Args:
            request: as in `is_same_request`.
            in_place: as in `OutputFolder.claim`.
        """
        if self.is_untouched or self.is_same_request(request):
            return True
        return in_place and not self._job.exists() and not (self.checkpoint / "FINISH").exists()

    def resolved(self, request: str, *, result: bool) -> dict[str, Any] | None:
        """Return what names were resolved to by the same request's unfinished job, else, with `result`, the result.

        Returns:
            `base_model`, `dataset` and `heldout` as in a manifest, and the `revision` that was asked for.
        """
        if self.is_same_request(request):
            return object_at(_read_json(self._record))
        manifest = object_at(_read_json(self.checkpoint / MANIFEST)) if result else {}
        return {**manifest, "revision": object_at(self._state(), "settings").get("revision")} if manifest else None

    def is_recorded_as_done(self, digest: str) -> bool:
        """Return whether `result.json` says that the checkpoint `digest` is done."""
        found = _read_json(self.root / RESULT)
        return isinstance(found, dict) and found.get("status") == "done" and found.get("checkpoint_digest") == digest

    def finish_step(self) -> int | None:
        """Return the step after which `FINISH_NOW` asks the job to end: the number in it, else 0; None without it."""
        try:
            text = atomic_files.read_plain(self._finish_now, _MAX_REQUEST_BYTES) or b""
        except OSError:
            return None
        return int(text) if re.fullmatch(rb"[0-9]{1,18}\s*", text) else 0

    def _refuse_foreign(
        self, job: JobRecord, unfinished: JobRecord | None, published: JobRecord | None, *, in_place: bool
    ) -> None:
        if unfinished is not None:
            if not job.is_same(unfinished):
                raise OutputError(self._of_another(job, unfinished))
        elif not in_place:
            for folder in (self.checkpoint, self.validation):
                if folder.exists():
                    raise OutputError(self._in_the_way(job, folder, published))

    def _of_another(self, job: JobRecord, unfinished: JobRecord) -> str:
        if not job.is_of_task(unfinished):
            return f"{self.root} holds the unfinished progress of another task{_named(job, unfinished)}; {_REPLACING}"
        return (
            f"{self.root} holds this task's unfinished progress, but what it trains has changed since: "
            f"{'; '.join(job.changed_since(unfinished))}; restore that, choose another output folder, "
            "or pass --overwrite to start over"
        )

    def _in_the_way(self, job: JobRecord, folder: Path, published: JobRecord | None) -> str:
        if published is None:
            return f"{folder} is another job's result; {_REPLACING}"
        changed = job.changed_since(published)
        if job.is_of_task(published) and changed:
            return (
                f"{folder} is a result of this task, but what it trains has changed: {'; '.join(changed)}; {_REPLACING}"
            )
        step = object_at(_read_json(self.checkpoint / MANIFEST)).get("global_step")
        known = job.invariants is not None and published.invariants is not None
        goes_on = known and not replace(job, curve=None).changed_since(replace(published, curve=None))
        if goes_on and type(step) is int and step < job.max_steps:
            return (
                f"{folder} is another job's result; to continue it from step {step}, add --checkpoint "
                f"{self.checkpoint}; otherwise {_REPLACING}"
            )
        return f"{folder} is another job's result{_named(job, published)}; {_REPLACING}"

    def _read_record(self) -> JobRecord | None:
        return JobRecord.of_record(_read_json(self._record))

    def _published(self) -> JobRecord | None:
        return JobRecord.of_result(_read_json(self.checkpoint / MANIFEST), self._state())

    def _state(self) -> Any:
        return _read_json(self.checkpoint / "state.json")


def _named(job: JobRecord, other: JobRecord) -> str:
    """Return the first differences between two trainings; empty if none is known."""
    changed = job.changed_since(replace(other, curve=job.curve))  # the held-out loss has no effect on the training
    more = f", and {plural(len(changed) - _MAX_NAMED, 'other difference')}" if len(changed) > _MAX_NAMED else ""
    return f": {'; '.join(changed[:_MAX_NAMED])}{more}" if changed else ""


def require_folder(path: Path) -> None:
    """Raise OutputError if `path` is a link or a file: the job writes only into folders of its own."""
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
        return
    what = f"a link to {path.readlink()}" if path.is_symlink() else "a file"
    raise OutputError(f"{path} is {what}, but the job needs a folder there: remove it, or choose another folder")


def _read_json(path: Path) -> Any:
    try:
        data = atomic_files.read_plain(path, _MAX_JSON_BYTES)
        return None if data is None else json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None

"""Push files to a repository on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from engine.core.errors import JobError, TaskError, TemporaryError, first_line
from engine.core.redact import public
from engine.data.fetch.hub import with_retries

SILENT_SECONDS: Final = 120.0
"""The time without progress after which a push is given up."""
_POLL_SECONDS: Final = 0.2
_FORBIDDEN: Final = {401: "the Hub does not accept HF_TOKEN", 403: "HF_TOKEN may not write there"}


def push(
    repo: str, files: Mapping[str, Path], *, token: str, message: str, must_stop: Callable[[], bool] = lambda: False
) -> str:
    """Put files into a repository in one commit, and create it, private, if it is not there.

    Files that are there already are not uploaded again, and a commit that would change nothing is not made. Other
    files in the repository stay.

    Args:
        repo: the repository, `OWNER/NAME`.
        files: the files by their names in the repository.
        token: a token that may write there.
        message: the commit's message.
        must_stop: whether to give up, asked several times a second.

    Returns:
        The address of the last commit.

    Raises:
        TaskError: the Hub refuses.
        TemporaryError: trouble with the network or the Hub after four attempts, or no progress for two minutes.
    """
    what = f"pushing to {repo}"
    watch = _Progress()
    done: dict[str, Any] = {}

    def work() -> None:
        try:
            done["where"] = with_retries(lambda: _attempt(repo, files, token, message, watch), what, refused=TaskError)
        except Exception as error:
            done["error"] = error

    # The client has no time limit of its own. A daemon thread does not keep the process from ending.
    threading.Thread(target=work, name="push", daemon=True).start()
    while not done:
        time.sleep(_POLL_SECONDS)
        if must_stop():
            raise TemporaryError(f"{what}: the job was stopped")
        if watch.seconds_silent() > SILENT_SECONDS:
            raise TemporaryError(f"{what}: no progress for {SILENT_SECONDS:g} s")
    if "where" in done:
        return str(done["where"])
    error = done["error"]
    raise error if isinstance(error, JobError) else TemporaryError(f"{what} failed: {public(first_line(error))[:300]}")


class _Progress:
    """The furthest position that any attempt has reached in each file: a repeated upload alone is no progress."""

    def __init__(self) -> None:
        self._furthest: dict[tuple[str, str], int] = {}
        self._last = time.monotonic()

    def reached(self, phase: str, name: str, position: int) -> None:
        """Note that a phase has read a file up to a position."""
        if position > self._furthest.get((phase, name), 0):
            self._furthest[phase, name] = position
            self._last = time.monotonic()

    def seconds_silent(self) -> float:
        """Return the seconds since the last progress."""
        return time.monotonic() - self._last


class _Watched(io.BufferedReader):
    """A file whose reading is noted as progress."""

    def __init__(self, path: Path, name: str, watch: _Progress) -> None:
        super().__init__(io.FileIO(path))
        self._name_in_repo, self._watch = name, watch
        self.phase = "hash"

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._watch.reached(self.phase, self._name_in_repo, self.tell())
        return data


def _attempt(repo: str, files: Mapping[str, Path], token: str, message: str, watch: _Progress) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(_Watched(path, name, watch)) for name, path in files.items()}
            # Open files, so that the client uses the protocol that reads them here, and progress can be seen.
            additions = [CommitOperationAdd(name, file) for name, file in opened.items()]
            for file, addition in zip(opened.values(), additions, strict=True):
                file.phase = "upload"
                # One by one: for several at once the client starts threads, for which the process would wait.
                api.preupload_lfs_files(repo, [addition], free_memory=False)
            commit = api.create_commit(repo, additions, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _FORBIDDEN:
            raise TaskError(f"pushing to {repo}: {_FORBIDDEN[status]}") from error
        raise
    return str(commit.commit_url)

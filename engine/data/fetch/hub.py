"""Access the Hugging Face Hub: pin branches to commits, retry on network errors, and explain refusals."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from engine.core.errors import DatasetError, JobError, ModelError, OutputError, TemporaryError
from engine.core.messages import listing, plural, short

T = TypeVar("T")

# Four attempts. Some calls of huggingface_hub try for 23 s by themselves: with these waits it stays within two minutes.
WAITS: Final = (1.0, 3.0, 9.0)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TEMPORARY_STATUS: Final = frozenset({408, 425, 429})
_NOT_THERE: Final = frozenset({401, 403, 404, 410})


def with_retries(call: Callable[[], T], what: str, *, refused: type[JobError] = ModelError) -> T:
    """Return `call()`, and retry it on temporary failures. `what` is the subject of every message.

    Raises TemporaryError after four attempts; `refused` with advice when the Hub says no (not found, private, gated)
    or HF_HUB_OFFLINE rules the question out; OutputError when the disk is full; anything else as it came.
    """
    quiet_hub()
    for attempt in range(len(WAITS) + 1):
        try:
            return call()
        except Exception as error:
            if not _is_temporary(error):
                _raise_refusal(error, what, refused)
                raise
            if attempt == len(WAITS):
                raise TemporaryError(
                    f"{what}: the Hub could not be reached in {attempt + 1} attempts ({_reason(error)}); try later"
                ) from error
            time.sleep(WAITS[attempt])
    raise AssertionError("unreachable")


def resolve_commit(
    repo_id: str, repo_type: Literal["model", "dataset"], revision: str, *, refused: type[JobError] | None = None
) -> str:
    """Return the commit that a branch or tag points at now; a full commit is returned without a request.

    With HF_HUB_OFFLINE, the commit that the local cache last saw there. Raises as `with_retries` does, with the
    error's `hub_id`; `refused` is DatasetError or ModelError by `repo_type` unless given.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        return _asked(repo_id, repo_type, revision, refused or (DatasetError if repo_type == "dataset" else ModelError))
    except JobError as error:
        error.hub_id = repo_id
        raise


def _asked(repo_id: str, repo_type: str, revision: str, refused: type[JobError]) -> str:
    import huggingface_hub
    from huggingface_hub import constants

    what = f"{repo_type} {repo_id!r} (revision {revision!r})"
    reference = Path(constants.HF_HUB_CACHE, f"{repo_type}s--{repo_id.replace('/', '--')}", "refs", revision)
    if constants.is_offline_mode():
        with contextlib.suppress(OSError, ValueError):
            commit = reference.read_text().strip()
            if _COMMIT.fullmatch(commit):
                return commit
        raise refused(
            f"{what} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to ask the Hub"
        )

    def ask() -> Any:
        try:
            return huggingface_hub.HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision).sha
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError):  # a body that the client does not expect
            return None

    commit = with_retries(ask, what, refused=refused)
    if not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
        raise refused(f"{what}: {constants.ENDPOINT} does not answer as the Hub does; check HF_ENDPOINT and the proxy")
    # As downloading by the branch's name would have noted it (we download by commit): what an offline run looks up.
    with contextlib.suppress(OSError, ValueError):
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
    return commit


def snapshot_of(path: Path, revision: str, refused: type[JobError]) -> Path:
    """Return the folder with a repository's files if `path` is its folder in the Hub's cache; else the path itself.

    Raises `refused`: the cache has nothing of the revision, or several and does not say which it is.
    """
    kept = path / "snapshots"
    if not path.name.startswith(("datasets--", "models--")) or not kept.is_dir():
        return path
    commits = sorted(folder.name for folder in kept.iterdir() if folder.is_dir())
    commit = revision
    with contextlib.suppress(OSError, ValueError):  # ValueError: no text, or a NUL in the revision
        commit = (path / "refs" / revision).read_text().strip()
    if commit in commits:
        return kept / commit
    if revision == "main" and len(commits) == 1:
        return kept / commits[0]
    raise refused(
        f"{path.name} is a folder of the Hub's cache with {plural(len(commits), 'snapshot')}, and its refs do not say "
        f"which of them is {short(revision)}: name the snapshot's folder ({listing(commits) or 'there is none'})"
    )


def quiet_hub() -> None:
    """Keep the Hub library's chatter off stderr, and its progress bars too unless a person is watching."""
    import huggingface_hub.utils

    huggingface_hub.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: libraries wrap network errors in their own."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _is_temporary(error: Exception) -> bool:
    import httpx2
    from huggingface_hub import constants, errors

    if constants.is_offline_mode():
        return False
    for cause in _chain(error):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return False
        status = _status(cause)
        if status is not None:
            return status in _TEMPORARY_STATUS or status >= 500
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            return True
    return False


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error that carries a response; else None."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _raise_refusal(error: Exception, what: str, refused: type[JobError]) -> None:
    """Raise the typed error if the Hub, the offline mode or the disk refused; return for any other error."""
    from huggingface_hub import constants, errors

    for cause in _chain(error):
        if isinstance(cause, JobError):
            return
        if isinstance(cause, OSError):
            _raise_for_disk(cause, what)
        if isinstance(cause, errors.GatedRepoError):
            raise refused(f"{what} is gated: accept its terms on its page, then set HF_TOKEN") from error
        if isinstance(cause, errors.RevisionNotFoundError):
            raise refused(f"{what}: there is no such revision on the Hub") from error
        if isinstance(cause, errors.EntryNotFoundError):
            raise refused(f"{what}: a file of it is not on the Hub ({_reason(cause)})") from error
        status = _status(cause)
        if isinstance(cause, errors.RepositoryNotFoundError | errors.HFValidationError) or status in _NOT_THERE:
            raise refused(
                f"{what}: nothing on the Hub that may be read; check the name, or set HF_TOKEN if it is private"
            ) from error
        if isinstance(cause, errors.OfflineModeIsEnabled):
            raise refused(
                f"{what} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set"
            ) from error
        if status is not None:  # of a proxy or a mirror: the Hub's own refusals are known by now
            raise refused(f"{what}: the Hub refuses it with HTTP status {status}; check HF_ENDPOINT") from error


def _raise_for_disk(error: OSError, what: str) -> None:
    from huggingface_hub import constants

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise OutputError(f"{what}: the disk is full while downloading; free some space") from error
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise OutputError(
            f"{what}: {constants.HF_HOME} cannot be written to ({error.strerror}); "
            "mount it writable for this user, or set HF_HOME"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]

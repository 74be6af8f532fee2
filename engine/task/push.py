"""The operator's settings for pushing results to the Hub. A task cannot ask for it: tasks come from strangers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from engine.core.errors import TaskError
from engine.core.messages import short
from engine.core.process.environment import flag_variable

PUSH_TO_HUB: Final = "PUSH_TO_HUB"
PUSH_EVERY_RESULT: Final = "PUSH_EVERY_RESULT"
_TRUE: Final = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """The repository to which results are pushed, and which ones are."""

    repo: str
    """The repository: `OWNER/NAME`."""
    token: str = field(repr=False)
    every_result: bool
    """False pushes only the result of a finished training."""


def describe(push: Push | None) -> list[str]:
    """Return a line on where results are pushed, if they are."""
    if push is None:
        return []
    which = "each result" if push.every_result else "the result of the finished training"
    return [f"{which} is pushed to {push.repo} on the Hub"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of pushing to the job's."""
    parser.add_argument(
        "--push-to-hub", metavar="REPO", help=f"push the finished training to OWNER/NAME on the Hub [{PUSH_TO_HUB}]"
    )
    parser.add_argument(
        "--push-every-result", action="store_true", help=f"push unfinished ones, too [{PUSH_EVERY_RESULT}=1]"
    )


def read_push(flags: argparse.Namespace, env: Mapping[str, str]) -> Push | None:
    """Return the operator's settings for pushing; None if nothing is pushed.

    Raises:
        TaskError: an invalid name, no token, or HF_HUB_OFFLINE.
    """
    repo, every = (
        flags.push_to_hub or env.get(PUSH_TO_HUB),
        flags.push_every_result or flag_variable(env, PUSH_EVERY_RESULT),
    )
    if not repo:
        if every:
            raise TaskError(
                f"{PUSH_EVERY_RESULT} is set, but no repository: name one with --push-to-hub or {PUSH_TO_HUB}"
            )
        return None
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        is_valid = repo.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise TaskError(f"{PUSH_TO_HUB} is {short(repo)}: expected a repository on the Hub, OWNER/NAME")
    if (env.get("HF_HUB_OFFLINE") or env.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE:
        raise TaskError(f"HF_HUB_OFFLINE forbids to push to {repo}: unset it or {PUSH_TO_HUB}")
    token = (env.get("HF_TOKEN") or get_token() or "").strip()
    if not (token.isascii() and token.isprintable()):  # the client would show it in its error
        raise TaskError("HF_TOKEN holds characters that are not a token's: set it again")
    if not token:
        raise TaskError(f"pushing to {repo} needs a token that may write there: set HF_TOKEN, or unset {PUSH_TO_HUB}")
    return Push(repo=repo, token=token, every_result=every)

"""Importing the libraries at less cost, by leaving out what they do over and over again: nothing is hidden from them.

Each measure is for the time of the imports only, and each does without itself where a library of another release is
built otherwise.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without the garbage collector, and keep it off what was imported.

    The libraries make millions of objects that live as long as the process: looking through them again and again is a
    fifth of their import's time.
    """
    gc.disable()
    try:
        with _lines_unread():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _lines_unread() -> Iterator[None]:
    """Let `inspect.getframeinfo` tell file, line number and function, without the text of the line.

    torch notes by it where each of its 130 operators written in Python is defined (`torch._library.utils.get_source`),
    which needs no text; and for the text `inspect` asks the file system for the real path of every module there is.
    """
    getframeinfo = inspect.getframeinfo

    def without_text(frame: FrameType | TracebackType, context: int = 1) -> inspect.Traceback:
        return getframeinfo(frame, context=0)

    inspect.getframeinfo = without_text
    try:
        yield
    finally:
        inspect.getframeinfo = getframeinfo


def import_transformers() -> None:
    """Import transformers and its table of models, which it makes once instead of twice.

    For the names that each model exports it reads 1,650 files of its folder `models`: in `transformers`, then in
    `transformers.models`. Its own memo misses the second time: it holds 128 of 550 folders, and the folder itself is
    another one by the name of its `__init__.py`.
    """
    import transformers

    import_utils: Any = sys.modules.get("transformers.utils.import_utils")
    scan = getattr(import_utils, "create_import_structure_from_path", None)
    if scan is None:
        return

    def scan_folder(path: Any) -> Any:
        """By the name that `transformers` itself has used: for a file, `scan` takes its folder too."""
        return scan(Path(path).parent if Path(path).is_file() else Path(path))

    import_utils.create_import_structure_from_path = scan_folder
    try:
        import transformers.models  # noqa: F401
    finally:
        import_utils.create_import_structure_from_path = scan

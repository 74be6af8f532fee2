"""Prepare a process before it imports anything else.

Until `secure_path` has run, every import may find a stranger's module: here only what Python has imported already.
"""

import os
import site
import sys

ROOT = os.path.abspath(__file__).removesuffix("/engine/core/process/startup.py")  # noqa: PTH100 - no pathlib yet
"""The folder that this package lies in."""
ENTRYPOINT = f"{ROOT}/entrypoint.py"
"""The program that starts all others, for processes that this one starts."""


def prepare_process() -> None:
    """Import nothing from the working folder, and survive the loss of the standard streams."""
    secure_path()
    from engine.core.process.streams import keep_streams

    keep_streams()


def secure_path() -> None:
    """Take the working folder off the path that modules are imported from, in this process and those it starts.

    The working folder may be a stranger's. Python puts it on the path for `python -m`, for `python -c`, by which
    multiprocessing starts its workers and its resource tracker, and for an empty or relative entry of PYTHONPATH.
    """
    kept = [entry for entry in sys.path if _is_trusted(entry)]
    sys.path[:] = list(dict.fromkeys([ROOT, *kept]))
    inherited = filter(_is_trusted, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([ROOT, *inherited]))
    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.flags.ignore_environment and not sys.flags.safe_path:  # `python -E`: workers would get that flag alone
        os.execv(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]])


def _is_trusted(entry: str) -> bool:
    if not os.path.isabs(entry):  # noqa: PTH117
        return False
    try:
        working = os.getcwd()  # noqa: PTH109
    except OSError:  # it was removed: nothing can be imported from it
        return True
    installed = (ROOT, os.path.dirname(os.__file__), *site.getsitepackages())  # noqa: PTH120
    return not _is_same(entry, working) or any(_is_same(entry, folder) for folder in installed)


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)

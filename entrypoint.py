"""Train a task, or start the program that the first word of the command line names (engine/commands/registry.py).

README.md lists flags, environment variables and exit codes.
"""

import os
import sys

if __name__ == "__main__":  # before anything else is imported; PYTHONSAFEPATH leaves this folder off the path
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from engine.core.process.startup import prepare_process

    prepare_process()

import gc
import io
from collections.abc import Mapping, Sequence
from typing import NoReturn

from engine.commands import registry


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the program that the command line names, and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale: a name in it must not end the program
    module, arguments = registry.split(argv)
    return registry.load(module)(arguments, environment)


def _leave(code: int) -> NoReturn:
    """End the process without a last garbage collection, which takes a second when torch has been imported."""
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:], os.environ))

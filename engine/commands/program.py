"""End a program as the training ends: with an exit code and one line."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from engine.commands.registry import Main
from engine.core.console import choose_format, say_error, say_traceback
from engine.core.errors import Interrupted, JobError
from engine.core.process.signals import Stop
from engine.core.process.termination import write_termination_message
from engine.results.outcome import describe, exit_code, exit_kind


def program(run: Main) -> Main:
    """Decorate the `main` of a program other than the training, so that it ends in the same way.

    A JobError or a signal ends it with that error's code and one line. Any other exception is a bug: code 70 and a
    traceback. The log has the format of `LOG_FORMAT`.
    """

    @functools.wraps(run)
    def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
        Stop().install()
        try:
            choose_format(environment)
            return run(argv, environment)
        except (JobError, Interrupted) as error:
            return fail(error)
        except Exception as error:
            say_traceback()
            return fail(error)

    return main


def fail(error: BaseException) -> int:
    """Print why a program ends, on stderr and as the container's termination message, and return the exit code."""
    message = describe(error)
    say_error(message, code=exit_code(error), kind=exit_kind(error))
    write_termination_message(message)
    return exit_code(error)

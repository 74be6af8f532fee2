"""A torchrun that ends with the job's own exit code, for jobs on several machines.

    entrypoint.py torchrun [torchrun's flags] --max-restarts=0 entrypoint.py [the job's flags]

torch's own launcher always exits with 1, so Kubernetes could not distinguish a wrong task from a lost connection. All
processes of a job end with the same code, and here each writes it to a file for its launcher.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from engine.core.errors import Interrupted, JobError, TemporaryError, first_line
from engine.core.process.environment import EXIT_CODES
from engine.core.process.signals import pass_finish_on
from engine.core.process.termination import write_termination_message
from engine.training.distributed.launch import SHUTDOWN_SECONDS, keep_rendezvous, left_codes, scratch


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start this machine's processes with torchrun's flags `argv`, wait for them, and return the job's exit code."""
    try:
        with scratch() as folder:
            os.environ[EXIT_CODES] = folder
            os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
            reason = _run(argv)
            codes = left_codes(folder)
    except JobError as error:
        reason, codes = error, {}
    if reason is None:
        return 0
    code = next((code for code in codes.values() if code), reason.code)
    if message := _message(reason, codes, code):
        print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201
        write_termination_message(message)
    return code


def _run(argv: Sequence[str]) -> JobError | Interrupted | None:
    """Run the processes until they end. Return the launcher's view of their failure; None if all succeeded."""
    import torch.distributed as dist
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    # The launcher would print tables about what the job's first process reports in one line.
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    pass_finish_on()
    try:
        run.run(run.parse_args(argv))  # type: ignore[no-untyped-call]
    except ChildFailedError:
        return TemporaryError("the processes of the job on this machine were killed; run the same command again")
    except SignalException as error:
        keep_rendezvous(error)
        name = signal.Signals(error.sigval).name
        return Interrupted(error.sigval, f"stopped by {name}; the same command continues from the saved progress")
    except (RendezvousError, dist.DistError) as error:
        return TemporaryError(f"the machines could not connect ({first_line(error)}); run the same command again")
    return None


def _message(reason: JobError | Interrupted, codes: Mapping[int, int], code: int) -> str | None:
    """Return this launcher's message; None if the job's first process, on this machine, has printed one."""
    if codes.get(0):
        return None
    if not codes:
        return str(reason)
    return f"the job ended with code {code}; the log of its first process says why"

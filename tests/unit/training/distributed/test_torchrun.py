"""With which code torchrun ends here, and what it says: by the codes that the processes left and its own reason."""

import os
import signal
from pathlib import Path

import pytest

from engine.core.errors import Interrupted, TemporaryError
from engine.core.process.environment import EXIT_CODES
from engine.training.distributed import torchrun

KILLED = TemporaryError("they were killed")
STOPPED = Interrupted(signal.SIGTERM, "stopped by SIGTERM")


@pytest.mark.parametrize(
    "reason, codes, code, said",
    [
        (None, {0: 0, 1: 0}, 0, None),
        (KILLED, {0: 2, 1: 2}, 2, None),  # the first process has said why
        (KILLED, {2: 2, 3: 2}, 2, "ended with code 2"),
        (KILLED, {}, 75, "they were killed"),
        (KILLED, {1: 75}, 75, "ended with code 75"),
        (KILLED, {0: 0, 1: 70}, 70, "ended with code 70"),
        (STOPPED, {0: 143, 1: 143}, 143, None),
        (STOPPED, {}, 143, "stopped by SIGTERM"),
    ],
)
def test_the_code_is_the_jobs(monkeypatch, capsys, reason, codes, code, said):
    told = []

    def run(argv):
        for rank, left in codes.items():
            Path(os.environ[EXIT_CODES], str(rank)).write_text(str(left))
        return reason

    monkeypatch.setattr(torchrun, "_run", run)
    monkeypatch.setattr(torchrun, "write_termination_message", told.append)
    monkeypatch.setenv(EXIT_CODES, "")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    assert torchrun.main(["--nnodes=2"], {}) == code
    assert capsys.readouterr().err == (f"error: {told[0]}\n" if said else "")
    assert [said in line for line in told] == ([True] if said else [])

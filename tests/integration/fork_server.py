"""Runs the program many times without starting it many times: imports it once, then forks a child for each run.

A child is what `python entrypoint.py` would be a few seconds after its start: it gets the arguments, environment and
folders of one run, calls the entry point's own `main`, and ends with its code. Requests and answers are
JSON lines on standard input and output; `forks.py` is the client.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

BUG_CODE = 70
_POLL_SECONDS = 0.004
_PR_SET_PDEATHSIG = 1


def main(heavy: bool) -> int:
    import entrypoint

    entrypoint._quiet_libraries()
    import engine.prepare

    if heavy:
        import engine.families.sd
        import engine.run  # noqa: F401
    names = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    # jemalloc, in Arrow, is prepared for forks; with any other thread a fork might not be safe.
    assert [name for name in names if name != "jemalloc_bg_thd"] == names[-1:], names
    own = os.getpid()
    print(json.dumps({"ready": own}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _run(entrypoint, request)
        print(json.dumps(_wait(child, request["seconds"])), flush=True)
    return 0


def _wait(child: int, seconds: float) -> dict[str, Any]:
    """How the child ended; it is killed when it takes longer than `seconds`."""
    started = time.monotonic()
    timed_out = False
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {
                "code": code,
                "seconds": time.monotonic() - started,
                "peak_bytes": usage.ru_maxrss << 10,
                "timed_out": timed_out,
            }
        if time.monotonic() - started > seconds and not timed_out:
            timed_out = True
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _run(entrypoint: Any, request: dict[str, Any]) -> NoReturn:
    from tests.integration.witness import Orders, Witness

    _redirect(request)
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    resource.setrlimit(resource.RLIMIT_DATA, (request["memory"], request["memory"]))
    witness = Witness(Orders(**request["orders"]))
    if request["user"] is not None:
        os.setgroups([])
        os.setresgid(request["user"], request["user"], request["user"])
        os.setresuid(request["user"], request["user"], request["user"])
    witness.install()
    code: int = BUG_CODE
    try:
        code = entrypoint.main(request["argv"], os.environ)
    except BaseException:
        traceback.print_exc()
    finally:
        # Taking down the interpreter would copy all of the server's memory: two of three seconds.
        threading._shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _redirect(request: dict[str, Any]) -> None:
    for descriptor, name in ((1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] == "heavy"))

"""Start the program many times without importing it many times: import it once, then fork a child for each job.

A child is what `python entrypoint.py` would be a few seconds after its start: it gets the arguments, environment and
folders of one job, runs `entrypoint.py` as `__main__`, and ends with its code. `forks.py` is the client: a connection
for each job, over which a request goes in, then the child's process ID and how it ended come out, as JSON lines.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

BUG_CODE = 70
_PR_SET_PDEATHSIG = 1


def main(flavour: str, name: str) -> int:
    """Serve at the abstract address `name` until standard input ends, as it does with the process at its other end."""
    import engine.job.prepare
    import entrypoint
    from engine.commands.train import quiet_libraries
    from engine.task.task import task_schema

    quiet_libraries()
    task_schema()  # compiled once for all jobs
    if flavour == "heavy":
        import engine.job.run
        import engine.models.families.sd.model
        import engine.models.families.sdxl.model  # noqa: F401
    _require_one_thread()
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen(64)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([server, sys.stdin], [], [])
            if sys.stdin in readable:
                return 0
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _serve(connection, entrypoint.__file__)
            connection.close()


def _require_one_thread() -> None:
    """Fail if this process has another thread than its own and jemalloc's, which Arrow brings: a fork is not safe then.

    A thread that has just begun has its parent's name for a moment.
    """
    for _ in range(100):
        names = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
        if [name for name in names if name != "jemalloc_bg_thd"] == names[-1:]:
            return
        time.sleep(0.02)
    raise AssertionError(names)


def _reap(signum: int, frame: types.FrameType | None) -> None:
    """Wait for the ended processes that started jobs, so that the jobs' CPU time counts as pytest's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _serve(connection: socket.socket, program: str) -> NoReturn:
    """Start one job, and say how it ends."""
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stream = connection.makefile("rw")
    request = json.loads(stream.readline())
    child = os.fork()
    if child == 0:
        _die_with_parent()
        os.close(connection.detach())
        _run(program, request)
    print(json.dumps({"pid": child}), file=stream, flush=True)
    _, status, usage = os.wait4(child, 0)
    ending = {"code": os.waitstatus_to_exitcode(status), "peak_bytes": usage.ru_maxrss << 10}
    try:
        print(json.dumps(ending), file=stream, flush=True)
    finally:  # whoever asked may be gone
        os._exit(0)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(program: str, request: dict[str, Any]) -> NoReturn:
    from tests.support.witness import Orders, Witness

    _redirect(request)
    os.chdir(request["cwd"])
    if request["umask"] >= 0:
        os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["memory"] is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (request["memory"], request["memory"]))
    witness = Witness(Orders(**request["orders"])) if request["orders"] is not None else None
    if request["user"] is not None:
        os.setgroups([])
        os.setresgid(request["user"], request["user"], request["user"])
        os.setresuid(request["user"], request["user"], request["user"])
    if witness is not None:
        witness.install()
    code: Any = BUG_CODE
    try:
        _run_as_main(program, request["argv"])
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        traceback.print_exc()
    finally:
        # Taking down the interpreter would copy all of the server's memory: two of three seconds.
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _run_as_main(program: str, argv: list[str]) -> None:
    """Do what `python PROGRAM ARGV…` does after its start; processes that the program spawns find it as their main."""
    module = types.ModuleType("__main__")
    module.__file__ = program
    sys.modules["__main__"] = module
    sys.argv = [program, *argv]
    exec(compile(Path(program).read_bytes(), program, "exec"), module.__dict__)


def _redirect(request: dict[str, Any]) -> None:
    for descriptor, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(name, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # taking down the interpreter takes seconds

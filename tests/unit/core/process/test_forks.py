"""A program in a forked child, seen from a process that starts it."""

import json
import subprocess
import sys
import textwrap

import pytest

from engine.core.process.startup import ROOT

PARENT = """
import json, os, signal, subprocess, sys, threading, time
from engine.core.process import forks

print("printed once")
signal.signal(signal.SIGTERM, lambda *_: print("the parent's handler"))

def run():
    {run}

{before}
child = forks.start({program!r}, ["a", "b"], run, prepare={prepare})
{after}
while child.poll() is None:
    time.sleep(0.01)
print(json.dumps(child.returncode))
"""
PROGRAM = "import sys; print('an interpreter of its own:', *sys.argv[1:]); sys.exit(5)"


@pytest.fixture
def ends(tmp_path):
    """Run the child: its exit code, and what both processes printed."""

    def ends(run, *, before="", after="", prepare=None):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        body = textwrap.indent(textwrap.dedent(run), "    ").strip()
        script = PARENT.format(run=body, before=before, after=after, program=str(program), prepare=prepare)
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        *lines, code = done.stdout.splitlines()
        assert lines[0] == "printed once"
        return json.loads(code), lines[1:], done.stderr

    return ends


def test_it_ends_with_the_programs_code_after_its_threads_and_exit_functions(ends):
    run = """
    import atexit
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    print(*sys.argv[1:], os.getsid(0) == os.getpid())
    return 7
    """
    assert ends(run) == (7, ["a b True", "thread", "at exit"], "")


@pytest.mark.parametrize("run, code", [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('x')", 1), ("1 / 0", 70)])
def test_other_ends(ends, run, code):
    found, printed, said = ends(run)
    assert (found, printed) == (code, []) and ("ZeroDivisionError" in said) == (code == 70)


def test_signals_are_at_their_defaults(ends):
    assert ends("time.sleep(60)", after="child.send_signal(signal.SIGTERM)")[:2] == (-15, [])


def test_waiting_has_a_limit(ends):
    after = """
try:
    child.wait(0.1)
except subprocess.TimeoutExpired:
    child.send_signal(signal.SIGKILL)
"""
    assert ends("time.sleep(60)", after=after)[0] == -9


@pytest.mark.parametrize(
    "before",
    [
        "threading.Thread(target=time.sleep, args=(2,), daemon=True).start()",
        "from types import SimpleNamespace as Fake\n"
        "sys.modules['torch'] = Fake(cuda=Fake(_is_in_bad_fork=lambda: True))",
    ],
)
def test_what_cannot_be_forked_starts_an_interpreter(ends, before):
    assert ends("return 7", before=before) == (5, ["an interpreter of its own: a b"], "")
    prepared = ends("return 7", before=before, prepare="lambda: os.write(1, b'prepared\\n')")
    assert prepared == (5, ["prepared", "an interpreter of its own: a b"], "")


def test_a_child_prepares_before_anything_else(ends):
    assert ends("print('runs'); return 7", prepare="lambda: print('prepared')") == (7, ["prepared", "runs"], "")
    assert ends("return 7", prepare="lambda: 1 / 0")[0] == 70

"""Cut a training into a chain of tasks and run them until one writes FINISH.

    entrypoint.py chain --task examples/demo/task.json --output out/demo [-- any flag of the training]

Each task runs in a process of its own, a child forked from this one, which has imported the libraries once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine.commands.forked.task import exit_code, preload, start_task
from engine.commands.program import program
from engine.core.errors import TemporaryError
from engine.core.process.forks import Child
from engine.results.output.contents import FINISH_NOW

DESCRIPTION: Final = """\
Cut a training into a chain of tasks and run them until one writes FINISH.

Each task's result goes to a folder of its own, OUTPUT/000, OUTPUT/001, …, and is the next task's checkpoint. Started
again after an interruption, it continues where it was: a task whose result exists ends at once. If the task's
max_train_steps or max_train_epochs was raised meanwhile, a finished chain is extended. SIGUSR1, or a file FINISH_NOW
in the folder of the task that runs or in OUTPUT, ends it after the current step with what is there.
"""
ATTEMPTS: Final = 3
"""Maximum number of starts of a task that ends with a temporary failure."""
_LOOK_SECONDS: Final = 0.5


@contextmanager
def passing_signals_on(task: Child) -> Iterator[None]:
    """Pass signals on to the task: SIGTERM and SIGINT stop it, SIGUSR1 finishes it. Then the chain ends as well."""

    def pass_on(signum: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            task.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def run_task(flags: list[str], output: Path, result: Path) -> int:
    """Run one task, repeat it after a temporary failure, and return its exit code.

    A file FINISH_NOW in the chain's folder `output` is moved to that of the task, `result`.
    """
    for attempt in range(ATTEMPTS):
        task = start_task(flags)
        with passing_signals_on(task):
            code = exit_code(_wait(task, output / FINISH_NOW, result / FINISH_NOW))
        if code != TemporaryError.code or attempt == ATTEMPTS - 1:
            break
        time.sleep(10 * 2**attempt)
    return code


def _wait(task: Child, request: Path, target: Path) -> int:
    while True:
        try:
            return task.wait(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):  # mostly there is none
                request.rename(target)


def results_in(output: Path) -> list[Path]:
    """Return the folders of the chain's results so far, in their order."""
    found: list[Path] = []
    while (output / f"{len(found):03}" / "checkpoint" / "manifest.json").is_file():
        found.append(output / f"{len(found):03}")
    return found


def is_raised(task: Path, result: Path) -> bool:
    """Return whether the task now trains longer than for this result, so that the chain continues after it."""
    try:
        now = json.loads(task.read_bytes())["train_args"]
        before = json.loads((result / "checkpoint" / "state.json").read_bytes())["settings"]["train_args"]
        ends = [(before.get(key), now.get(key)) for key in ("max_train_steps", "max_train_epochs")]
        return any(None not in (one, other) and one < other for one, other in ends)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # the job reports what is wrong with the task or the result


def is_told_to_finish(result: Path) -> bool:
    """Return whether the task was told to finish, by SIGUSR1 or by a file FINISH_NOW in its output folder."""
    return bool(json.loads((result / "result.json").read_bytes()).get("finish_now"))


def progress_text(task: Path, result: Path) -> str:
    """Describe how far the training is and, if the task has a last step, how long the rest takes."""
    args = json.loads(task.read_bytes())["train_args"]
    done = json.loads((result / "result.json").read_bytes())
    step, trained = done["global_step"], done["steps_trained"]
    end = args.get("max_train_steps") if "max_train_epochs" not in args else None
    if not end or not trained:
        return f"{result} is done: step {step:,}"
    left = sum(done["seconds"].values()) / trained * (end - step)
    return f"{result} is done: step {step:,} of {end:,}, about {max(round(left / 60), 1):,} min left"


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the chain. Return 0, or the exit code of the task that failed."""
    parser = argparse.ArgumentParser(
        prog="entrypoint.py chain",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", required=True, metavar="PATH", help="the task; each run of it trains its next slice")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the numbered results go")
    parser.add_argument("flags", nargs="*", help="more flags for the training, after --")
    args = parser.parse_args(argv)
    done = results_in(args.output)
    # The last task is run again, in case its result is another task's, unless this task ends later than it did.
    raised = bool(done) and is_raised(Path(args.task), done[-1])
    number = len(done) if raised else max(len(done) - 1, 0)
    if raised or not (done and (done[-1] / "checkpoint" / "FINISH").exists()):  # else the job will find nothing to do
        preload()
    checkpoint = done[number - 1] / "checkpoint" if number else None
    while True:
        result = args.output / f"{number:03}"
        resume = ["--checkpoint", str(checkpoint)] if checkpoint else []
        code = run_task(["--task", args.task, "--output-dir", str(result), *resume, *args.flags], args.output, result)
        if code:
            return code
        checkpoint = result / "checkpoint"
        if (checkpoint / "FINISH").exists():
            break
        print(progress_text(Path(args.task), result), flush=True)
        if result not in done and is_told_to_finish(result):
            print(f"told to finish: the LoRA is in {checkpoint}; the same command goes on from it")
            return 0
        number += 1
    print(f"the training is finished: open {result / 'report.html'}; the weights are in {checkpoint}")
    return 0

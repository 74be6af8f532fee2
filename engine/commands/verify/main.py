"""Check a result by training it again: `entrypoint.py verify RESULT --task task.json`.

Prints `identical`, or the first step, file and tensor that differ, with what is known of the devices and versions.
Exit codes: 0 identical, 1 different, else the job's own: 2 task or flag, 5 unreadable result or checkpoint, 70 a bug,
or the code of a failed re-run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from engine.commands.diffs import result_diff
from engine.commands.program import program
from engine.commands.verify import origins
from engine.commands.verify.rerun import rerun, settings_of
from engine.commands.verify.result import Result
from engine.core.errors import TaskError
from engine.core.messages import listing, plural
from engine.job.prepare import parent_folder, read_task
from engine.results import history as history_file
from engine.results.checkpoint import MANIFEST, Checkpoint
from engine.results.output.contents import FINISH_NOW
from engine.results.output.mounts import ALLOW_EPHEMERAL_OUT
from engine.task.push import PUSH_EVERY_RESULT, PUSH_TO_HUB
from engine.task.settings import Settings
from engine.training.methods.registry import METHODS, load_parent

DIFFERENT: Final = 1


_ENDED_EARLY: Final = (
    "different: the task was told to finish after step {}, before its last one, so this is not the whole result of the "
    "task; --ended-early compares it up to that step"
)
"""The verdict on a result of fewer steps than its task asks for. Whoever made it may simply have stopped."""


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Verify one result, and return the exit code."""
    flags = _parser().parse_args(argv)
    # The re-run goes to a temporary folder, which need not be a mount, is pushed nowhere, and is no tracker's run.
    nowhere = {PUSH_TO_HUB: "", PUSH_EVERY_RESULT: "", "TRACKERS": ""}
    lines, code = verify(flags, {**environment, ALLOW_EPHEMERAL_OUT: "1", **nowhere})
    print("\n".join(lines))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entrypoint.py verify", description="Check a result by re-running it.", allow_abbrev=False
    )
    parser.add_argument("result", type=Path, metavar="RESULT", help="an output folder, or its checkpoint/")
    parser.add_argument(
        "--task", type=Path, required=True, metavar="PATH", help="the task that the result was made from"
    )
    parser.add_argument(
        "--task-folder", type=Path, metavar="DIR", help="where its relative paths start, if not in its own folder"
    )
    parser.add_argument("--steps", type=int, metavar="K", help="re-run only the first K steps")
    parser.add_argument(
        "--ended-early", action="store_true", help="accept that the task was told to finish before its last step"
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="the checkpoint that the result continues")
    parser.add_argument("--cache-dir", metavar="DIR", help="as the job's")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="as the job's")
    return parser


def verify(flags: argparse.Namespace, environment: Mapping[str, str]) -> tuple[list[str], int]:
    """Re-run a task and compare the result.

    Returns:
        Lines for a person, and the exit code: 0 or `DIFFERENT`.

    Raises:
        TaskError: the task is invalid, or the checkpoint is not the one that the result continues.
        CheckpointError: the result is incomplete.
        RerunError: the re-run failed.
    """
    if flags.steps is not None and flags.steps < 1:
        raise TaskError(f"--steps is {flags.steps}: expected at least 1")
    result = Result.read(flags.result.absolute())
    told = history_file.parse(result.checkpoint.history)
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        out = Path(scratch, "out")
        settings = settings_of(flags, out, environment)
        start = _start_step(settings, result)
        trained = result.checkpoint.global_step - start
        steps = flags.steps if flags.steps is not None and flags.steps < trained else None
        if steps is None and "ended_at_step" in result.checkpoint.manifest:
            if not flags.ended_early:
                return [_ENDED_EARLY.format(result.checkpoint.global_step)], DIFFERENT
            out.mkdir()
            (out / FINISH_NOW).write_text(f"{result.checkpoint.global_step}\n")
        rerun(flags, settings, out, steps, environment)
        again = Result.read(out)
        retold = history_file.parse(again.checkpoint.history)
        step = result_diff.first_step(told, retold)
        expected = {} if steps else _folders(out, with_validation=result.validation_folder is not None)
        file, others = (None, set[str]()) if steps else _first_file(result, expected)
    if step is None and file is None:
        extent = f"steps {start + 1} to {retold[-1].step}" if len(retold) > start else "no steps"
        what = f"{extent}, only the history" if steps else f"{extent}, {plural(len(expected), 'file')}"
        unknown = listing(sorted(others - expected.keys()))
        ignored = [f"not compared, not part of a result: {unknown}"] if unknown else []
        return [f"identical: {what}", *ignored, *origins.describe(result.checkpoint, again.checkpoint, start=start)], 0
    lines = [f"different: {step or file}"]
    lines += [f"first file: {file}"] if step and file else []
    claims = _claims(result.checkpoint, again.checkpoint)
    if not steps:
        claims += _other_lengths(result.checkpoint, again.checkpoint)
    lines += [f"the result says: {line}" for line in claims]
    until = origins.same_until(told, retold, again.checkpoint.global_step)
    verdict = origins.describe(
        result.checkpoint, again.checkpoint, start=start, same_until=until, is_other=bool(claims)
    )
    return lines + verdict, DIFFERENT


def _first_file(result: Result, expected: Mapping[str, Path]) -> tuple[str | None, set[str]]:
    """Describe the first file that differs or that only the result has, and return the names of files not compared."""
    files, (taken, others) = result.files(expected), result.names()
    listing_all = f"checkpoint/{MANIFEST}"  # it lists the others, so it differs if any does: it is compared last
    told = {name: path for name, path in expected.items() if name != listing_all}
    file = result_diff.first_file(files, told) or result_diff.first_more(taken, expected)
    return file or result_diff.first_file(files, {listing_all: expected[listing_all]}), others


def _start_step(settings: Settings, result: Result) -> int:
    """Check that the result continues the given checkpoint, and return the step at which its task began.

    Raises:
        TaskError: it continues another one.
    """
    task = read_task(settings)
    folder = parent_folder(settings, task)
    parent = load_parent(folder, METHODS[task.training_type]) if folder else None
    claimed = result.checkpoint.manifest.get("parent")
    if claimed != (parent.digest if parent else None):
        given = f"{folder} is {parent.digest[:12]}" if parent else "none is given"
        wanted = f"the checkpoint {str(claimed)[:12]}" if claimed else "no checkpoint"
        raise TaskError(f"the result continues {wanted}, but {given}; give its parent with --checkpoint")
    return parent.global_step if isinstance(parent, Checkpoint) else 0


def _folders(out: Path, *, with_validation: bool) -> dict[str, Path]:
    names = ("checkpoint", "validation") if with_validation else ("checkpoint",)
    files = (path for name in names for path in sorted((out / name).rglob("*")) if path.is_file())
    return {path.relative_to(out).as_posix(): path for path in files}


def _claims(result: Checkpoint, rerun: Checkpoint) -> list[str]:
    """Describe the differences by which the result's own files show that it is of another task."""
    found = list(result_diff.differing_keys(result.world, rerun.world))
    return found + [
        line
        for line in result_diff.differing_keys(result.settings, rerun.settings)
        if not line.startswith(("validation.num_images", "validation.prompts"))
    ]


def _other_lengths(result: Checkpoint, rerun: Checkpoint) -> list[str]:
    """Describe the difference if the result ends at another step than its task."""
    told, again = ({"global_step": one.global_step, "finished": one.finished} for one in (result, rerun))
    return list(result_diff.differing_keys(told, again))

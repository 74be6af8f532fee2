"""Check a result by training it again: `entrypoint.py verify RESULT --task task.json`.

Prints `identical`, or the first step, file and tensor that differ, with what is known of the devices and versions.
Exit codes: 0 identical, 1 different, else the job's own: 2 task or flag, 5 unreadable result or checkpoint, 70 a bug,
or the code of a failed re-run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Final

from engine.commands import origins
from engine.commands.diffs import result_diff
from engine.commands.program import program
from engine.core.errors import JobError, TaskError
from engine.core.messages import listing, plural
from engine.core.process.startup import ENTRYPOINT
from engine.data.media.registry import is_sample
from engine.job.prepare import parent_folder, read_task
from engine.results import history as history_file
from engine.results.checkpoint import MANIFEST, Checkpoint
from engine.results.output.contents import FINISH_NOW
from engine.results.output.mounts import ALLOW_EPHEMERAL_OUT
from engine.task.push import PUSH_EVERY_RESULT, PUSH_TO_HUB
from engine.task.settings import Settings, read_flags, read_settings
from engine.training.methods.registry import METHODS, load_checkpoint, load_parent

DIFFERENT: Final = 1
_OF_FILE_MANAGERS: Final = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that file managers leave in folders; no loader reads them."""


class RerunError(JobError):
    """An error for a re-run that failed, with its code and reason."""

    def __init__(self, code: int, kind: str, message: str) -> None:
        super().__init__(f"the re-run failed: {message}")
        self.code, self.kind = code, kind


@dataclass(frozen=True, slots=True)
class Result:
    """A result on disk. Its checkpoint matches its own hashes; nothing else is known about it."""

    checkpoint_folder: Path
    validation_folder: Path | None
    checkpoint: Checkpoint

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Read an output folder, or a `checkpoint/` alone.

        Raises:
            CheckpointError: there is no complete checkpoint.
        """
        is_checkpoint = (folder / MANIFEST).is_file()
        own = folder if is_checkpoint else folder / "checkpoint"
        found = load_checkpoint(own)
        return cls(own, None if is_checkpoint else folder / "validation", found)

    def files(self, names: Mapping[str, Path]) -> dict[str, Path | None]:
        """Find the files with these names (`checkpoint/…`, `validation/…`); None for each that is not a plain file."""
        folders = {"checkpoint": self.checkpoint_folder, "validation": self.validation_folder}
        found: dict[str, Path | None] = {}
        for name in names:
            kind, _, base = name.partition("/")
            folder = folders[kind]
            if folder is not None:
                found[name] = folder / base if _is_plain_file(folder / base) else None
        return found

    def names(self) -> tuple[set[str], set[str]]:
        """Return the names that belong to the result, and the names of the other files there.

        Everything that a checkpoint lists or has belongs to it: loaders take weights and configurations by whatever
        name they find first, including hidden ones and those in subfolders. In `validation/` it is images and weights.
        """
        taken = {f"checkpoint/{name}" for name in self.checkpoint.manifest["files"]}
        found = {f"checkpoint/{name}" for name in _everything_below(self.checkpoint_folder)}
        others = {name for name in found if PurePath(name).name in _OF_FILE_MANAGERS}
        told_by_what_is_in_them = {parent.as_posix() for name in taken | found for parent in PurePath(name).parents}
        taken |= found - others - told_by_what_is_in_them - {f"checkpoint/{MANIFEST}"}
        if self.validation_folder is not None:
            pictures = {f"validation/{name}" for name in _everything_below(self.validation_folder, folders=False)}
            taken |= {name for name in pictures if is_sample(name) or PurePath(name).suffix.lower() == ".safetensors"}
            others |= pictures
        return taken, others - taken


def _everything_below(folder: Path, *, folders: bool = True) -> Iterator[str]:
    """Yield the relative paths of all files and links, and with `folders` of folders. Links are not followed."""
    for at, inner, files in os.walk(folder):
        names = inner if folders else [name for name in inner if Path(at, name).is_symlink()]
        yield from (os.path.relpath(f"{at}/{name}", folder) for name in (*files, *names))


def _is_plain_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode) and os.access(path, os.R_OK)
    return False


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
        settings = _settings(flags, out, environment)
        start = _start_step(settings, result)
        trained = result.checkpoint.global_step - start
        steps = flags.steps if flags.steps is not None and flags.steps < trained else None
        if steps is None and "ended_at_step" in result.checkpoint.manifest:
            if not flags.ended_early:
                return [_ENDED_EARLY.format(result.checkpoint.global_step)], DIFFERENT
            out.mkdir()
            (out / FINISH_NOW).write_text(f"{result.checkpoint.global_step}\n")
        _rerun(flags, settings, out, steps, environment)
        again = Result.read(out)
        rerun = history_file.parse(again.checkpoint.history)
        step = result_diff.first_step(told, rerun)
        expected = {} if steps else _folders(out, with_validation=result.validation_folder is not None)
        file, others = (None, set[str]()) if steps else _first_file(result, expected)
    if step is None and file is None:
        extent = f"steps {start + 1} to {rerun[-1].step}" if len(rerun) > start else "no steps"
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
    until = origins.same_until(told, rerun, again.checkpoint.global_step)
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


def _settings(flags: argparse.Namespace, out: Path, environment: Mapping[str, str]) -> Settings:
    settings = read_settings(read_flags([*_job_flags(flags, out), "--task", str(flags.task)]), environment)
    folder: Path | None = flags.task_folder
    if folder is None:
        return settings
    if not folder.is_dir():
        raise TaskError(f"--task-folder {folder}: there is no such folder; name the one that the task was in")
    return replace(settings, task_folder=folder.absolute())


def _job_flags(flags: argparse.Namespace, out: Path) -> list[str]:
    found = ["--output-dir", str(out)]
    for name in ("checkpoint", "cache_dir", "device"):
        value = getattr(flags, name)
        if value is not None:
            folder = name != "device"
            found += [f"--{name.replace('_', '-')}", str(Path(value).absolute()) if folder else value]
    return found


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


def _rerun(
    flags: argparse.Namespace, settings: Settings, out: Path, steps: int | None, environment: Mapping[str, str]
) -> None:
    """Run the job, or its first steps, in a process of its own."""
    is_same = steps is None and flags.task_folder is None
    task = flags.task.absolute() if is_same else _rewritten(settings, out.with_name("task"), steps)
    command = [sys.executable, ENTRYPOINT, "--task", str(task), *_job_flags(flags, out)]
    code = _run_quietly(command, out, environment=environment)
    if code == 0:
        return
    try:
        told = json.loads((out / "result.json").read_bytes())
    except OSError:
        raise RerunError(75, "temporary", f"it ended with code {code}") from None
    message = told["message"].replace(str(out), f"a temporary folder in {tempfile.gettempdir()}")
    raise RerunError(code, told["kind"], message)


def _run_quietly(command: Sequence[str], out: Path, *, environment: Mapping[str, str]) -> int:
    """Run a job and print its log, except lines with names of files in `out`, which is removed at the end."""
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as job:
        try:
            for line in job.stderr or ():
                if str(out) not in line:
                    print(line, end="", file=sys.stderr, flush=True)
        except BaseException:
            job.kill()
            raise
    return int(job.returncode)


def _rewritten(settings: Settings, folder: Path, steps: int | None) -> Path:
    """Write the task into a new `folder`, with absolute paths in place of relative ones, and return its path.

    The folder must be empty otherwise: a name that is a Hub ID in the task must not become a path.

    Args:
        steps: writes a task of only the first steps; None writes the whole one.
    """
    task, value = read_task(settings), json.loads(settings.task_bytes)
    validation = value.get("validation", {})
    if steps is not None:
        value["train_args"]["num_train_steps"] = steps
        value["validation"] = validation = validation | {"num_images": 1}  # images have no effect on the steps
        for key in ("prompts", "prompts_file"):
            validation.pop(key, None)
    value["model"]["name"] = task.model.name
    for name, one in task.model.components.items():
        value["model"]["components"][name]["name"] = one.name
    if task.dataset.name is not None:
        value["dataset"]["name"] = task.dataset.name
    if task.validation.dataset is not None and task.validation.dataset.name is not None:
        validation["dataset"]["name"] = task.validation.dataset.name
    if validation.get("prompts_file"):
        validation["prompts_file"] = task.validation.prompts_file
    if task.checkpoint is not None:
        value["checkpoint"] = task.checkpoint
    folder.mkdir()
    path = folder / "task.json"
    path.write_text(json.dumps(value))
    return path


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

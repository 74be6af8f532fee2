"""Check a result by doing its work again: `python -m engine.commands.verify RESULT --task task.json`.

Prints `identical`, or the first step, file and tensor that differ, with what is known about the two worlds.
Exit codes: 0 identical, 1 different, else the job's own: 2 task or flag, 5 unreadable result or checkpoint, or whatever
ended the re-run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from engine.commands import origins, result_diff
from engine.core.errors import Interrupted, JobError, TaskError
from engine.core.files import atomic_files
from engine.core.messages import listing, plural
from engine.core.process.signals import Stop
from engine.data.media.transforms import IMAGE_SUFFIXES
from engine.job.prepare import parent_folder, read_task
from engine.results import history as history_file
from engine.results.checkpoint import MANIFEST, Checkpoint
from engine.results.outcome import describe, exit_code
from engine.results.output.mounts import ALLOW_EPHEMERAL_OUT
from engine.task.settings import Settings, read_flags, read_settings
from engine.training.methods.registry import METHODS, load_checkpoint, load_parent

ENTRYPOINT: Final = Path(__file__).resolve().parents[2] / "entrypoint.py"
DIFFERENT: Final = 1
_TAKEN: Final = IMAGE_SUFFIXES | {".mp4", ".safetensors"}
_OF_FILE_MANAGERS: Final = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Left behind where somebody has looked at a folder; no loader reads them."""


class RerunError(JobError):
    """The re-run ended otherwise than well, for this reason."""

    def __init__(self, code: int, kind: str, message: str) -> None:
        super().__init__(f"the re-run failed: {message}")
        self.code, self.kind = code, kind


@dataclass(frozen=True, slots=True)
class Result:
    """A result as it lies on disk, its checkpoint believed as far as its own hashes go."""

    checkpoint_folder: Path
    validation_folder: Path | None
    checkpoint: Checkpoint

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Read an output folder, or a `checkpoint/` alone.

        Raises:
            CheckpointError: it holds no whole checkpoint.
        """
        is_checkpoint = (folder / MANIFEST).is_file()
        own = folder if is_checkpoint else folder / "checkpoint"
        found = load_checkpoint(own)
        return cls(own, None if is_checkpoint else folder / "validation", found)

    def files(self, names: Mapping[str, bytes]) -> dict[str, bytes | None]:
        """The files of these names (`checkpoint/…`, `validation/…`), None for each that is not a plain file here."""
        folders = {"checkpoint": self.checkpoint_folder, "validation": self.validation_folder}
        found: dict[str, bytes | None] = {}
        for name, expected in names.items():
            kind, _, base = name.partition("/")
            folder = folders[kind]
            if folder is not None:
                found[name] = None
                with contextlib.suppress(OSError):  # nothing larger than what it is compared with could be
                    found[name] = atomic_files.read_plain(folder / base, max(4 * len(expected), 1 << 20))
        return found

    def names(self) -> tuple[set[str], set[str]]:
        """What readers take for the result's, and the other files there, which nobody does.

        The former is all that a checkpoint lists or has: loaders take weights and configurations by whatever name they
        find first, hidden ones too, and from folders in it. And what is a picture or weights, in `validation/`.
        """
        taken = {f"checkpoint/{name}" for name in self.checkpoint.manifest["files"]}
        found = {f"checkpoint/{name}" for name in _everything_below(self.checkpoint_folder)}
        others = {name for name in found if PurePath(name).name in _OF_FILE_MANAGERS}
        told_by_what_is_in_them = {parent.as_posix() for name in taken | found for parent in PurePath(name).parents}
        taken |= found - others - told_by_what_is_in_them - {f"checkpoint/{MANIFEST}"}
        if self.validation_folder is not None:
            pictures = {f"validation/{name}" for name in _everything_below(self.validation_folder, folders=False)}
            taken |= {name for name in pictures if PurePath(name).suffix.lower() in _TAKEN}
            others |= pictures
        return taken, others - taken


def _everything_below(folder: Path, *, folders: bool = True) -> Iterator[str]:
    """Relative paths of all that is there, links among them, wherever they lead; or all that is no folder."""
    for at, inner, files in os.walk(folder):
        names = inner if folders else [name for name in inner if Path(at, name).is_symlink()]
        yield from (os.path.relpath(f"{at}/{name}", folder) for name in (*files, *names))


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Verify one result, and return the exit code."""
    Stop().install()
    try:
        flags = _parser().parse_args(argv)
        # The re-run goes to a temporary folder: in the image that is no mount, and is not to be.
        lines, code = verify(flags, {**environment, ALLOW_EPHEMERAL_OUT: "1"})
    except (JobError, Interrupted) as error:
        print(f"error: {describe(error)}", file=sys.stderr)  # noqa: T201
        return exit_code(error)
    print("\n".join(lines))  # noqa: T201
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.commands.verify", description="Check a result by re-running it.", allow_abbrev=False
    )
    parser.add_argument("result", type=Path, metavar="RESULT", help="an output folder, or its checkpoint/")
    parser.add_argument("--task", type=Path, required=True, metavar="PATH", help="the task that it is said to be of")
    parser.add_argument("--steps", type=int, metavar="K", help="re-run the first K steps alone")
    parser.add_argument("--checkpoint", metavar="DIR", help="the checkpoint that the result continues")
    parser.add_argument("--cache-dir", metavar="DIR", help="as the job's")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="as the job's")
    return parser


def verify(flags: argparse.Namespace, environment: Mapping[str, str]) -> tuple[list[str], int]:
    """Re-run and compare.

    Returns:
        What was found, in lines for a person, and the exit code.

    Raises:
        TaskError: the task is invalid, or the checkpoint is not the one that the result continues.
        CheckpointError: the result is not whole.
        RerunError: the re-run ended otherwise than well.
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
        _rerun(flags, settings, out, steps, environment)
        again = Result.read(out)
        rerun = history_file.parse(again.checkpoint.history)
        step = result_diff.first_step(told, rerun)
        expected = {} if steps else _folders(out, with_validation=result.validation_folder is not None)
        file, others = (None, set[str]()) if steps else _first_file(result, expected)
    if step is None and file is None:
        extent = f"steps {start + 1} to {rerun[-1].step}" if len(rerun) > start else "no steps"
        what = f"{extent}, history alone" if steps else f"{extent}, {plural(len(expected), 'file')}"
        unknown = listing(sorted(others - expected.keys()))
        ignored = [f"not compared, nothing that a result has: {unknown}"] if unknown else []
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


def _first_file(result: Result, expected: Mapping[str, bytes]) -> tuple[str | None, set[str]]:
    """The first file that differs, or that the result alone has; and the names of those that are not compared."""
    files, (taken, others) = result.files(expected), result.names()
    listing_all = f"checkpoint/{MANIFEST}"  # so what differs differs in it, too: it comes last
    told = {name: data for name, data in expected.items() if name != listing_all}
    file = result_diff.first_file(files, told) or result_diff.first_more(taken, expected)
    return file or result_diff.first_file(files, {listing_all: expected[listing_all]}), others


def _settings(flags: argparse.Namespace, out: Path, environment: Mapping[str, str]) -> Settings:
    return read_settings(read_flags([*_job_flags(flags, out), "--task", str(flags.task)]), environment)


def _job_flags(flags: argparse.Namespace, out: Path) -> list[str]:
    found = ["--output-dir", str(out)]
    for name in ("checkpoint", "cache_dir", "device"):
        value = getattr(flags, name)
        if value is not None:
            folder = name != "device"
            found += [f"--{name.replace('_', '-')}", str(Path(value).absolute()) if folder else value]
    return found


def _start_step(settings: Settings, result: Result) -> int:
    """The step that the result's task began at, after checking that the parent at hand is the result's.

    Raises:
        TaskError: it is not.
    """
    task = read_task(settings)
    folder = parent_folder(settings, task)
    parent = load_parent(folder, METHODS[task.training_type]) if folder else None
    claimed = result.checkpoint.manifest.get("parent")
    if claimed != (parent.digest if parent else None):
        given = f"{folder} is {parent.digest[:12]}" if parent else "none is given"
        wanted = f"the checkpoint {str(claimed)[:12]}" if claimed else "no checkpoint"
        raise TaskError(f"the result continues {wanted}, and {given}; name its parent by --checkpoint")
    return parent.global_step if isinstance(parent, Checkpoint) else 0


def _rerun(
    flags: argparse.Namespace, settings: Settings, out: Path, steps: int | None, environment: Mapping[str, str]
) -> None:
    """Run the job, or its first steps, in a process of its own."""
    task = flags.task.absolute() if steps is None else _shortened(settings, steps, out.with_name("first-steps"))
    command = [sys.executable, str(ENTRYPOINT), "--task", str(task), *_job_flags(flags, out)]
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
    """Run a job and pass on what it tells a person, but the lines that name files in `out`: it is gone at the end."""
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
                    print(line, end="", file=sys.stderr, flush=True)  # noqa: T201
        except BaseException:
            job.kill()
            raise
    return int(job.returncode)


def _shortened(settings: Settings, steps: int, folder: Path) -> Path:
    """Write the task of the first steps alone, with the absolute paths of the task's own folder, into a new `folder`.

    Nothing else may lie there: a name that is a Hub ID in the task must not become a path.
    """
    task, value = read_task(settings), json.loads(settings.task_bytes)
    value["train_args"]["num_train_steps"] = steps
    value["validation"]["num_images"] = 1  # pictures are no part of a step
    value["validation"].pop("prompts", None)
    value["model"]["name"] = task.model.name
    if task.dataset.name is not None:
        value["dataset"]["name"] = task.dataset.name
    if task.validation.dataset is not None and task.validation.dataset.name is not None:
        value["validation"]["dataset"]["name"] = task.validation.dataset.name
    if task.checkpoint is not None:
        value["checkpoint"] = task.checkpoint
    folder.mkdir()
    path = folder / "task.json"
    path.write_text(json.dumps(value))
    return path


def _folders(out: Path, *, with_validation: bool) -> dict[str, bytes]:
    names = ("checkpoint", "validation") if with_validation else ("checkpoint",)
    files = (path for name in names for path in sorted((out / name).rglob("*")) if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def _claims(result: Checkpoint, rerun: Checkpoint) -> list[str]:
    """Where the result itself says that it is of another task."""
    found = list(result_diff.differing_keys(result.world, rerun.world))
    return found + [
        line
        for line in result_diff.differing_keys(result.settings, rerun.settings)
        if not line.startswith(("validation.num_images", "validation.prompts"))
    ]


def _other_lengths(result: Checkpoint, rerun: Checkpoint) -> list[str]:
    """Where the result says that it ends elsewhere than its task."""
    told, again = ({"global_step": one.global_step, "finished": one.finished} for one in (result, rerun))
    return list(result_diff.differing_keys(told, again))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))

"""Run a task again, or its first steps, in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.core.errors import JobError, TaskError
from engine.core.process.startup import ENTRYPOINT
from engine.job.prepare import read_task
from engine.task.settings import Settings, read_flags, read_settings


class RerunError(JobError):
    """An error for a re-run that failed, with its code and reason."""

    def __init__(self, code: int, kind: str, message: str) -> None:
        super().__init__(f"the re-run failed: {message}")
        self.code, self.kind = code, kind


def settings_of(flags: argparse.Namespace, out: Path, environment: Mapping[str, str]) -> Settings:
    """Return the settings of a re-run into the folder `out`, by the flags of `verify`.

    Raises TaskError for a flag or a variable that is wrong.
    """
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


def rerun(
    flags: argparse.Namespace, settings: Settings, out: Path, steps: int | None, environment: Mapping[str, str]
) -> None:
    """Run the job of `settings_of` in a process of its own.

    Args:
        flags: those of `verify`.
        settings: the job's.
        out: its output folder.
        steps: how many steps of the task are run; None for all of them.
        environment: its environment variables.

    Raises:
        RerunError: it failed.
    """
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

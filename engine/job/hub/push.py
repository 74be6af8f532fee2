"""Push a published result to the Hub, where the node's operator wants that."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

from engine.core.console import NOTE, say
from engine.core.errors import JobError
from engine.data.fetch import hub_push
from engine.job.context import JobContext
from engine.results.checkpoint import CARD, FINISH, MANIFEST, step_of
from engine.results.output.contents import OutputContents
from engine.results.output.folder import REPORT
from engine.results.report.model_card import PICTURES
from engine.results.report.pictures import without_training_images
from engine.training.methods.method import MethodSpec

_AGAIN: Final = "the result is whole; the same command pushes it again"


def push_result(context: JobContext, *, is_new: bool) -> None:
    """Push the result in the output folder, if that is wanted of it. A failure is a warning, never the job's end.

    The first process calls it when the result is published. The training state is not pushed: it is larger than the
    weights, and only the next task of the chain needs it.

    Args:
        context: the job's run.
        is_new: whether this run published the result, and may write the warning into `result.json`.
    """
    wanted, output = context.settings.push, context.output
    if wanted is None or not (wanted.every_result or (output.checkpoint / FINISH).exists()):
        return
    context.stop.ignore()  # the result is there: a signal ends the push, not the job
    manifest = json.loads((output.checkpoint / MANIFEST).read_bytes())
    say(f"pushing the result to {wanted.repo} on the Hub")
    try:
        with context.outcome.clock.phase("push"), tempfile.TemporaryDirectory() as folder:
            files = files_to_push(output, manifest["files"], context.job.method)
            if REPORT in files:
                files[REPORT] = _for_others(files[REPORT], Path(folder))
            where = hub_push.push(
                wanted.repo,
                files,
                token=wanted.token,
                message=f"Step {manifest['global_step']}",
                must_stop=lambda: context.stop.signum != 0,
            )
    except (JobError, OSError) as error:
        say(f"{NOTE}{error}; {_AGAIN}")
    else:
        say(f"pushed: {where}")
    if is_new:
        with contextlib.suppress(JobError):  # the result is published: a disk that is full now does not fail the job
            output.write_result(context.outcome.done())


def files_to_push(output: OutputContents, listed: Collection[str], method: MethodSpec) -> dict[str, Path]:
    """Return the published files by their names in the repository: card, manifest, weights, images and the report.

    Args:
        output: the output folder.
        listed: the names of the checkpoint's files in its manifest.
        method: the training method, which knows its weights.
    """
    weights = (name for name in listed if method.step_ending(name) is not None or step_of(name) is not None)
    found = {name: output.checkpoint / name for name in (*weights, *({CARD} & set(listed)), MANIFEST)}
    for path in sorted(output.validation.rglob("*")):
        if path.is_file():
            found[f"{PICTURES}/{path.relative_to(output.validation).as_posix()}"] = path
    if (output.root / REPORT).is_file():
        found[REPORT] = output.root / REPORT
    return found


def _for_others(report: Path, folder: Path) -> Path:
    """Write the report without training images into a folder: who pushes a LoRA need not want to push the dataset."""
    copy = folder / REPORT
    copy.write_bytes(without_training_images(report.read_text(encoding="utf-8")).encode())
    return copy

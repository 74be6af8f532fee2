"""Jobs that claim an output folder, and what they left there."""

import json
import shutil

from engine.core.files import atomic_files
from engine.results.output.folder import Claim, JobRecord, OutputFolder

JOB = JobRecord("task", "parent")
OTHER = JobRecord("other task", "parent")
AGAIN = JobRecord("task", "result of task")
"""The same task started again in place, after its result became the checkpoint."""


def manifest(job):
    return json.dumps({"task_digest": job.task_digest, "parent": job.parent}).encode()


def files(job):
    return {"weights": b"of " + job.task_digest.encode(), "manifest.json": manifest(job)}


def put_result(out, job):
    for name in ("checkpoint", "validation"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
        for file, data in files(job).items():
            (out / name / file).write_bytes(data)


def put_unfinished(out, job, progress=b"saved"):
    (out / ".job").mkdir(parents=True)
    (out / ".job" / "record.json").write_text(json.dumps({"task_digest": job.task_digest, "parent": job.parent}))
    if progress is not None:
        (out / ".job" / "progress").write_bytes(atomic_files.seal(progress))


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def progress_of(output):
    """The saved bytes, or None."""
    return output.read_progress()


def claim(out, job=JOB, *, in_place=False, overwrite=False):
    with OutputFolder.lock(out) as output:
        return output.claim(job, in_place=in_place, overwrite=overwrite)


def run_job(output, job, *, in_place=False):
    """What `engine.job.run` does with the folder, with bytes in place of training."""
    if output.claim(job, in_place=in_place, overwrite=False) is Claim.FINISHED:
        return
    done = int(progress_of(output) or b"0")
    for step in range(done + 1, 3):
        output.save_progress(str(step).encode())
    output.publish(output.validation, files(job), last="manifest.json")
    output.publish(output.checkpoint, files(job), last="manifest.json")
    output.write_result({"status": "done"})
    output.complete()

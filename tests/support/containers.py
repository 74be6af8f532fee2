"""Real containers of the real image: what `docker run` does with one task, seen from outside."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE = os.environ.get("IMAGE") or "sd-lora-task:cpu"
PATIENCE = 300.0
"""Seconds for anything that takes less than a minute on an idle machine."""

# Whoever runs the tests as root plays a person of another UID, as root's own files prove nothing.
CALLER = (1000, 1000) if os.geteuid() == 0 else (os.getuid(), os.getgid())
STRANGER = (23456, 23456)
WEIGHTS = ("pytorch_lora_weights.safetensors", "lora_webui.safetensors", "state.safetensors")


def docker(*args, check=True, **options):
    """One docker command; its output is text."""
    done = subprocess.run(
        ["docker", *map(str, args)], check=False, capture_output=True, text=True, timeout=PATIENCE, **options
    )
    assert not check or done.returncode == 0, f"docker {' '.join(map(str, args))}\n{done.stdout}{done.stderr}"
    return done


def missing_engine():
    """Why no container can be run here, or None."""
    try:
        docker("version")
    except (OSError, AssertionError, subprocess.TimeoutExpired):
        return "no Docker engine answers"
    if docker("image", "inspect", IMAGE, check=False).returncode:
        return f"there is no image {IMAGE}: make image-cpu"
    return None


@functools.cache
def engine_knows_gpus():
    """Whether `--gpus all` starts here. CI's own engine is told that it does; one without NVIDIA's toolkit refuses."""
    line = ("run", "--rm", "--gpus", "all", "--network=none", "--entrypoint", "true", IMAGE)
    return docker(*line, check=False).returncode == 0


def give(folder, owner):
    """Change the owner of a folder and all in it."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, *owner)
    return folder


def owners(folder):
    """The owners of everything in a folder, and of the folder."""
    return {(path.stat().st_uid, path.stat().st_gid) for path in (folder, *folder.rglob("*"))}


@dataclass(frozen=True, slots=True)
class Finished:
    """A container that has ended."""

    code: int
    stderr: str
    out: Path

    @property
    def result(self):
        return json.loads((self.out / "result.json").read_text())

    def folders(self):
        """Every file of the two published folders."""
        paths = [path for name in ("checkpoint", "validation") for path in sorted((self.out / name).iterdir())]
        return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}

    def weights(self):
        """What does not depend on interruptions: three files and the images."""
        files = self.folders()
        return {name: files[name] for name in files if name.startswith("validation/") or Path(name).name in WEIGHTS}


def command(out, *args, options=(), task=None, network="none"):
    """`docker run` as in the README, on a CPU and without a network unless one is named."""
    gpus = ["--gpus", "all"] if engine_knows_gpus() else []
    mounts = ["-v", f"{out}:/out", *(["-v", f"{task}:/task"] if task else [])]
    return ["docker", "run", "--rm", f"--network={network}", *gpus, "-e", "DEVICE=cpu", *mounts, *options, IMAGE, *args]


def run(out, *args, stdin=None, **options):
    """Run one container to its end. Options as in `command`."""
    line = command(out, *args, **options)
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=PATIENCE, input=stdin)
    return Finished(done.returncode, done.stdout + done.stderr, out)


def succeed(out, *args, **options):
    """Run one container that ends well."""
    finished = run(out, *args, **options)
    assert finished.code == 0, finished.stderr
    return finished


@contextlib.contextmanager
def running(out, *args, options=(), task=None):
    """A container under way: (its name, its process). Nothing of it is left behind."""
    name = f"sd-lora-task-test-{uuid.uuid4().hex[:12]}"
    line = command(out, *args, options=["--name", name, *options], task=task)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield name, process
    finally:
        docker("rm", "-f", name, check=False)
        process.communicate(timeout=PATIENCE)


def wait_for_step(out, step, process):
    """Until the job has trained so many steps and saved its progress."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(OSError, ValueError):
            last = json.loads((out / "progress.jsonl").read_text().splitlines()[-1])
            if last.get("step", 0) >= step and (out / ".job" / "progress").exists():
                return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within {PATIENCE:.0f} s")

"""The real program in a subprocess, seen through its contract alone: flags, environment, files, exit codes."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.forks import ForkedProcess, ForkServer

ENTRYPOINT = Path(__file__).resolve().parents[2] / "entrypoint.py"
PATIENCE = 480.0
"""Seconds for anything that takes a few on an idle machine."""
SOON = 40.0
"""Seconds within which a stopped job ends, on a machine that does other things too; alone it takes three at most."""
POLL = 0.004
"""Seconds between two looks: often enough to meet the moments between two writes, without taking a core."""
WEIGHTS = ("pytorch_lora_weights.safetensors", "lora_webui.safetensors", "state.safetensors")
"""The files of a checkpoint that must not depend on how the training was cut into tasks."""
MARK = "INTEGRATION_TEST_JOB"
"""An environment variable that all processes of one job inherit."""
READ_LATE = {
    *("ALLOW_PRIVATE_URLS", "CACHE_DIR", "CHECKPOINT_DIR", "DEVICE", "MAX_CACHE_BYTES", "MAX_DATASET_BYTES"),
    *("MAX_ENCODED_BYTES", "OUTPUT_DIR", "PROCESSES", "SAVE_SECONDS", "TASK_FILE", "TASK_JSON"),
}
"""Variables that neither the interpreter nor a library reads while it starts: a forked job obeys them, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A job that has ended."""

    code: int
    stdout: str
    stderr: str
    out: Path

    @property
    def result(self) -> dict[str, Any]:
        return read_json(self.out / "result.json")

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.out / "checkpoint" / "manifest.json")

    @property
    def card(self) -> bytes:
        """The model card."""
        return (self.out / "checkpoint" / "README.md").read_bytes()

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.stderr
        assert self.stderr.rstrip().splitlines()[-1] == lines[0], self.stderr
        return lines[0].removeprefix("error: ")

    def weights(self) -> dict[str, bytes]:
        """What must be equal however a training was split or interrupted: three files and the last step's images."""
        files = {name: (self.out / "checkpoint" / name).read_bytes() for name in WEIGHTS}
        images = folder_bytes(self.out / "validation")
        return files | {name: data for name, data in images.items() if not name.startswith("step-")}

    def folders(self) -> dict[str, bytes]:
        """Both published folders, manifest and all."""
        return {
            f"{name}/{file}": data
            for name in ("checkpoint", "validation")
            for file, data in folder_bytes(self.out / name).items()
        }


@dataclass(slots=True, kw_only=True)
class Running:
    """A job under way."""

    process: subprocess.Popen[bytes] | ForkedProcess
    out: Path
    mark: str
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def stderr(self) -> str:
        return self.log.with_suffix(".err").read_text()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for something to show from outside."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"the job ended before {what}:\n{self.stderr}"
            assert time.monotonic() < deadline, f"no {what} in {PATIENCE} s:\n{self.stderr}"
            time.sleep(POLL)

    def until_step(self, step: int) -> None:
        self.until(lambda: reached_step(self.out) >= step, f"step {step}")

    def family(self) -> list[int]:
        """All living processes of this job, its own included."""
        needle = f"{MARK}={self.mark}".encode()
        # A forked process shows the environment of what it was forked from.
        found = [self.process.pid] if self.process.poll() is None else []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if needle in path.read_bytes().split(b"\0") and not _is_zombie(path.parent):
                    found.append(int(path.parent.name))
        return sorted(set(found))

    def assert_gone(self) -> None:
        """None of the job's processes outlives it, but for the moment that multiprocessing's own need to notice."""
        deadline = time.monotonic() + 20
        while family := self.family():
            assert time.monotonic() < deadline, f"processes of the ended job are still there: {family}"
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """The job's image-loading processes."""
        found = []
        for path in Path("/proc", str(self.process.pid), "task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in path.read_text().split() if _is_worker(child)]
        return found

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def finish(self) -> Finished:
        """Wait for the end, and check what holds for every end."""
        code = self.process.wait(timeout=PATIENCE)
        finished = Finished(
            code=code, stdout=self.log.with_suffix(".out").read_text(), stderr=self.stderr, out=self.out
        )
        if code != 70:
            assert "Traceback" not in finished.stderr, finished.stderr
        if code > 1:  # 1 is the verdict of `verify`, which is no error
            assert finished.error, finished.stderr
        return finished


def _is_worker(pid: str) -> bool:
    return b"spawn_main" in Path("/proc", pid, "cmdline").read_bytes()


def _is_zombie(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


_GPU_VARIABLES = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "PYTORCH_NVML_BASED_CUDA_CHECK")
"""What a machine may need for its GPUs to be found, from a forked process too."""


def clean_environment(home: Path) -> dict[str, str]:
    """What a started program sees of this machine: the CPU, no Hub, and a cache in its own home."""
    return {name: os.environ[name] for name in _GPU_VARIABLES if name in os.environ} | {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "CACHE_DIR": str(home / "cache"),
        "DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def start_job(
    task: Mapping[str, Any] | bytes | None,
    out: Path | None,
    *flags: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    prefix: Sequence[str] = (),
    umask: int = -1,
    fresh: bool = False,
) -> Running:
    """Start the program in a clean environment, forked from a process that has imported it unless that matters.

    Args:
        task: written to a file and named by `--task`; None leaves that to `flags` and `env`.
        out: named by `--output-dir`; None leaves that to `flags` and `env` too.
        flags: more flags.
        env: more variables. Without any, the device is the CPU and the Hub is off limits.
        cwd: the working folder.
        prefix: a command that starts the program.
        umask: of the process.
        fresh: start an interpreter of its own, as users do, because the start itself matters.
    """
    mark = uuid.uuid4().hex
    scratch = _scratch()
    log = scratch / mark
    variables = {**clean_environment(scratch), MARK: mark, **(env or {})}
    arguments = [str(flag) for flag in flags]
    if task is not None:
        path = log.with_suffix(".json")
        path.write_bytes(task if isinstance(task, bytes) else json.dumps(task).encode())
        arguments += ["--task", str(path)]
    if out is not None:
        arguments += ["--output-dir", str(out)]
    options: dict[str, Any] = {"env": variables, "cwd": cwd or scratch, "umask": umask}
    process: subprocess.Popen[bytes] | ForkedProcess
    if fresh or prefix or not set(env or {}) <= READ_LATE:
        with log.with_suffix(".out").open("wb") as stdout, log.with_suffix(".err").open("wb") as stderr:
            process = subprocess.Popen(
                [*prefix, sys.executable, str(ENTRYPOINT), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                **options,
            )
    else:
        process = shared_server().start(arguments, log=log, **options)
    return Running(process=process, out=out or scratch / "nowhere", mark=mark, log=log)


def run_job(task: Mapping[str, Any] | bytes | None, out: Path | None, *flags: str | Path, **options: Any) -> Finished:
    """Run the program to its end. Arguments as in `start_job`."""
    running = start_job(task, out, *flags, **options)
    try:
        return running.finish()
    finally:
        running.process.kill()


def succeed(task: Mapping[str, Any] | bytes | None, out: Path | None, *flags: str | Path, **options: Any) -> Finished:
    """`run_job` that must end well."""
    finished = run_job(task, out, *flags, **options)
    assert finished.code == 0, finished.stderr
    return finished


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run jobs two at a time: most of a small job is starting up."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


_SCRATCH: list[Path] = []
_SERVERS: list[ForkServer] = []
_SERVER_LOCK = Lock()


@contextlib.contextmanager
def using_scratch(folder: Path) -> Iterator[None]:
    """Where task files, logs and the shared cache go, for the length of the block."""
    _SCRATCH[:] = [folder]
    try:
        yield
    finally:
        while _SERVERS:
            _SERVERS.pop().close()


def shared_server() -> ForkServer:
    """The process that has imported torch and the model's classes, from which all jobs of this process are forked."""
    from tests.support.forks import ForkServer

    with _SERVER_LOCK:
        if not _SERVERS:
            _SERVERS.append(ForkServer(_scratch(), heavy=True))
    return _SERVERS[0]


def _scratch() -> Path:
    return _SCRATCH[0]


def changed(task: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a task with values set at dotted keys."""
    result = copy.deepcopy(dict(task))
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        target = functools.reduce(lambda inner, key: inner.setdefault(key, {}), path, result)
        target[last] = value
    return result


def run_chain(
    task: Mapping[str, Any],
    root: Path,
    lengths: Sequence[int],
    *,
    each: Callable[[int], Mapping[str, str]] = lambda _: {},
    changes: Callable[[int], Mapping[str, Any]] = lambda _: {},
) -> list[Finished]:
    """Train `task` in slices of these many steps, each continuing the one before.

    The checkpoint is named by the task, by the flag and by the environment in turn.

    Args:
        task: its `num_train_steps` is replaced.
        root: holds one output folder per slice.
        lengths: steps of each slice.
        each: the environment of slice number i.
        changes: what slice number i changes in the task.
    """
    done: list[Finished] = []
    for index, length in enumerate(lengths):
        own = changed(task, {"train_args.num_train_steps": length, **changes(index)})
        env, flags = dict(each(index)), []
        if done:
            parent = str(done[-1].out / "checkpoint")
            if index % 3 == 0:
                own["checkpoint"] = parent
            elif index % 3 == 1:
                flags = ["--checkpoint", parent]
            else:
                env["CHECKPOINT_DIR"] = parent
        done.append(succeed(own, root / f"slice-{index}", *flags, env=env))
    return done


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def progress(out: Path) -> list[dict[str, Any]]:
    """The whole lines of `progress.jsonl` so far."""
    try:
        text = (out / "progress.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def reached_step(out: Path) -> int:
    return max((line["step"] for line in progress(out)), default=-1)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything that a job that changes nothing must leave alone: names, bytes, times, modes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (status.st_mtime_ns, status.st_ino, status.st_mode, content)
    return found


def assert_same(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> None:
    """Byte for byte, without printing the bytes."""
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def assert_whole(out: Path) -> None:
    """A published folder is whole at every moment: each file that the manifest lists, with its hash."""
    if (out / "checkpoint").exists():
        files = folder_bytes(out / "checkpoint")
        listed = read_json(out / "checkpoint" / "manifest.json")["files"]
        assert {name: hashlib.sha256(files[name]).hexdigest() for name in listed} == listed
    if (out / "validation").exists():
        listed = {row["file"] for row in read_json(out / "validation" / "prompts.json")}
        found = set(folder_bytes(out / "validation"))
        assert listed | {"prompts.json"} == {name for name in found if not name.startswith("step-")}


def perturbed(index: int) -> dict[str, str]:
    """Environments that differ in what must not matter."""
    draws = random.Random(index)
    return {
        "PYTHONHASHSEED": str(draws.randrange(1, 2**32)),
        "TZ": ("UTC", "Asia/Kathmandu", "America/St_Johns")[index % 3],
        "LANG": ("C", "C.UTF-8", "POSIX")[index % 3],
    }


def slice_environment(root: Path, index: int, *, is_forked: bool = False) -> dict[str, str]:
    """Return the environment of one slice of a chain: every other one has another cache.

    The second one also has an interpreter of its own unless `is_forked`: its start takes longer than training a slice.
    """
    own = perturbed(index) if index == 1 and not is_forked else {}
    return {"CACHE_DIR": str(root / f"cache-{index % 2}"), **own}


@contextlib.contextmanager
def serving(answers: Mapping[str, bytes | int]) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine: its address, and the paths asked for so far.

    `answers` maps a path to a body or to an error status; any other path is a 404.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer = answers.get(self.path, 404)
            self.send_response(200 if isinstance(answer, bytes) else answer)
            body = answer if isinstance(answer, bytes) else b"no"
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


STOPPED = {signal.SIGTERM: 143, signal.SIGINT: 130}

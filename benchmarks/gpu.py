"""All that is to be found out on a GPU, in one command that ends in time: the tests that need one, then the table.

    make gpu                                            # at most 9 minutes on a machine with an H100 or H200
    python -m benchmarks.gpu --peer ../diffusers/examples/text_to_image/train_text_to_image_lora.py
    python -m benchmarks.gpu --rehearse                 # the same on the CPU with tiny models, which decides nothing

Needs no network: models and images are made here. It runs with the torch of the interpreter that it is started with.
Packages that this one lacks can be brought as wheels: `make gpu-wheels` collects them, `--wheels FOLDER` installs them
into an environment in `--work`. `results.json` and `table.md` in `--out` are written anew after each part, so whatever
ends the program, what was measured is there; `log.txt` holds what the parts print.

Exit code 0: nothing failed, though the time may not have been enough for all; 1: something failed; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.gpu_report import Results, write

ROOT: Final = Path(__file__).resolve().parents[1]
Ending = Literal["done", "failed", "no time"]
TEST_SECONDS: Final = 200
"""At most for the tests. The models are built at the same time."""
ROW_SECONDS: Final = 100
"""At most for one row of the table."""
LEAST_SECONDS: Final = 20
"""With less time left no further part is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training of the table."""

    model: str
    resolution: int
    batch_size: int
    steps: int
    is_deterministic: bool = True

    @property
    def name(self) -> str:
        kind = "" if self.is_deterministic else ", not deterministic"
        return f"{self.model} {self.resolution}² batch {self.batch_size}{kind}"


# The most important rows first, and a row without determinism beside the one that it is compared with.
ROWS: Final = (
    Row(model="sd15", resolution=512, batch_size=1, steps=200),
    Row(model="sd15", resolution=512, batch_size=1, steps=200, is_deterministic=False),
    Row(model="sd15", resolution=512, batch_size=16, steps=60),
    Row(model="sd15", resolution=512, batch_size=16, steps=60, is_deterministic=False),
    Row(model="sdxl", resolution=1024, batch_size=1, steps=80),
    Row(model="sdxl", resolution=1024, batch_size=1, steps=80, is_deterministic=False),
    Row(model="sd15", resolution=512, batch_size=32, steps=40),
)
REHEARSED_ROWS: Final = (
    Row(model="tiny", resolution=64, batch_size=1, steps=10),
    Row(model="tiny", resolution=64, batch_size=1, steps=10, is_deterministic=False),
    Row(model="tiny", resolution=64, batch_size=2, steps=4),
)
REHEARSED_TESTS: Final = ("-k", "test_same_task_twice or test_result_names_the_device or gpus")


class Parts:
    """Runs parts as processes of their own, none longer than the time that is left."""

    def __init__(self, *, seconds: float, log: Path) -> None:
        """
        Args:
            seconds: for all parts together, from now.
            log: takes what they print.
        """
        self._end = time.monotonic() + seconds
        self._log = log
        self._running: list[subprocess.Popen[bytes]] = []

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def start(self, command: Sequence[str | Path], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a part as the leader of a group of processes."""
        words = [str(word) for word in command]
        with self._log.open("ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"} | (env or {}),
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def finish(self, process: subprocess.Popen[bytes], *, most: float) -> Ending:
        """Wait for a part, for `most` seconds at most, and end it with all its processes if it takes longer."""
        try:
            code = process.wait(max(min(most, self.left()), 0))
        except subprocess.TimeoutExpired:
            return "no time"
        finally:
            self._kill(process)
        return "failed" if code else "done"

    def stop(self) -> None:
        """End all parts."""
        for process in list(self._running):
            self._kill(process)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if process in self._running:
            self._running.remove(process)
            with contextlib.suppress(ProcessLookupError):  # it has ended, and left no other process
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(args: argparse.Namespace) -> Results:
    """Run all parts, in the order of their importance, as far as the time goes."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "log.txt").unlink(missing_ok=True)
    shutil.rmtree(args.work / "cache", ignore_errors=True)
    parts = Parts(seconds=args.seconds, log=args.out / "log.txt")
    results = Results(is_rehearsal=args.rehearse)
    rows = REHEARSED_ROWS if args.rehearse else ROWS
    try:
        python = _environment(args) if args.wheels else Path(sys.executable)
        results.machine = _describe_machine(python, parts, args)
        write(results, args.out)
        builds = parts.start([python, "-m", "benchmarks.workloads", args.work, *_models(rows)])
        _run_tests(python, parts, args, results)
        if parts.finish(builds, most=parts.left() - ROW_SECONDS) != "done":
            results.notes.append("the models were not built in time, or could not be: see log.txt")
        for row in rows:
            _measure(row, python, parts, args, results)
            write(results, args.out)
        if args.peer:
            _compare(next(row for row in rows if row.batch_size > 1), python, parts, args, results)
    finally:
        parts.stop()
        write(results, args.out)
    return results


def _models(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(f"{row.model}:{row.resolution}" for row in rows))


def _environment(args: argparse.Namespace) -> Path:
    """Install the wheels into a new environment that sees this one's packages, and return its interpreter."""
    folder = args.work / "environment"
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    python: Path = folder / "bin/python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # Not `--system-site-packages`: of an interpreter in an environment it would show the packages beneath that one.
    Path(place, "beneath.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    # Without pip, which the image does not have. Of these wheels only programs for the shell are not at their places.
    for wheel in sorted(args.wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    subprocess.run([python, "-m", "compileall", "-q", "-j", "0", place], check=False, stdout=subprocess.DEVNULL)
    return python


def _describe_machine(python: Path, parts: Parts, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the machine is.

    Raises:
        SystemExit: there is no GPU, and this is no rehearsal; or a package is missing.
    """
    done = subprocess.run(
        [python, "-m", "benchmarks.gpu_machine"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise SystemExit(f"{python} cannot run this: {done.stderr[-2000:]}\nmake gpu-wheels collects packages")
    found: dict[str, Any] = json.loads(done.stdout)
    if not found["gpus"] and not args.rehearse:
        print(f"{python} sees no GPU; --rehearse tries everything on the CPU with tiny models", file=sys.stderr)
        raise SystemExit(2)
    print(f"{found['gpu'] or 'CPU'}: {found['matrix product TFLOP/s']} TFLOP/s, {parts.left():.0f} s left", flush=True)
    return found


def _run_tests(python: Path, parts: Parts, args: argparse.Namespace, results: Results) -> None:
    """Run the tests that are marked `gpu`: exactness, interruptions, several GPUs where there are."""
    if subprocess.run([python, "-c", "import pytest"], check=False, stderr=subprocess.DEVNULL).returncode:
        results.tests_ending = "failed"
        results.notes.append("The tests were not run: pytest is missing (make gpu-wheels).")
        return
    lines = args.out / "tests.jsonl"
    lines.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-p", "benchmarks.gpu_tests", "-p", "no:cacheprovider", "-m", "gpu"]
    command += ["tests/gpu", "tests/integration/test_processes.py"]
    workers = min(6, (os.cpu_count() or 1) // 2)
    if args.rehearse:
        command += REHEARSED_TESTS
    elif workers > 1 and importlib.util.find_spec("xdist"):
        command += ["-n", str(workers)]
    env = {"GPU_TESTS_RESULTS": str(lines.resolve()), "GPU_TESTS_DEVICE": _device(args)}
    ending = parts.finish(parts.start(command, env), most=TEST_SECONDS)
    found = lines.read_text().splitlines() if lines.exists() else []
    results.tests = [json.loads(line) for line in found]
    results.tests_ending = ending
    lines.unlink(missing_ok=True)
    write(results, args.out)
    print(f"tests: {results.count_tests()}, {parts.left():.0f} s left", flush=True)


def _measure(row: Row, python: Path, parts: Parts, args: argparse.Namespace, results: Results) -> None:
    """Measure one row of the table."""
    found: dict[str, Any] = {}
    ending: Ending = "no time"
    if parts.left() >= LEAST_SECONDS:
        kept = args.out / "row.json"
        command = [python, "-m", "benchmarks.bench_job", *_workload(row, args), "--runs", "1"]
        command += ["--cache", args.work / "cache", "--json", kept]
        if not row.is_deterministic:
            command.append("--undetermined")
        ending = parts.finish(parts.start(command), most=ROW_SECONDS)
        if ending == "done":
            found = json.loads(kept.read_text())["medians"]
        kept.unlink(missing_ok=True)
    results.rows.append({**_facts(row), "ending": ending, "found": found})
    speed = found.get("images/s after the first step")
    print(f"{row.name}: {f'{speed:.2f} images/s' if speed else ending}, {parts.left():.0f} s left", flush=True)


def _compare(row: Row, python: Path, parts: Parts, args: argparse.Namespace, results: Results) -> None:
    """Train one row's task with this job and with the peer, without images."""
    kept = args.out / "peer.json"
    command = [python, "-m", "benchmarks.compare", *_workload(row, args), "--runs", "1", "--training-only"]
    command += ["--peer", args.peer.resolve(), "--json", kept]
    if args.peer_path:
        command += ["--peer-path", args.peer_path.resolve()]
    ending: Ending = "no time"
    if parts.left() >= LEAST_SECONDS:
        ending = parts.finish(parts.start(command), most=parts.left())
    found = json.loads(kept.read_text()) if ending == "done" else {}
    results.peer = {**_facts(row), "program": str(args.peer), "ending": ending, "found": found}
    kept.unlink(missing_ok=True)
    print(f"peer: {ending}, {parts.left():.0f} s left", flush=True)


def _workload(row: Row, args: argparse.Namespace) -> list[str | Path]:
    flags = ["--model", row.model, "--resolution", row.resolution, "--batch-size", row.batch_size, "--steps", row.steps]
    flags += ["--precision", "bf16", "--images", 64, "--validation-images", 1, "--device", _device(args)]
    return [str(flag) for flag in flags] + ["--work", args.work]


def _facts(row: Row) -> dict[str, Any]:
    return {
        "model": row.model,
        "resolution": row.resolution,
        "batch": row.batch_size,
        "steps": row.steps,
        "deterministic": row.is_deterministic,
    }


def _device(args: argparse.Namespace) -> str:
    return "cpu" if args.rehearse else "cuda"


def _on_signal(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=520, help="for everything (520)")
    parser.add_argument("--out", type=Path, default=ROOT / "out/gpu", help="for the results (out/gpu)")
    parser.add_argument("--work", type=Path, default=ROOT / "build/bench", help="for models, images and the cache")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install first")
    parser.add_argument("--peer", type=Path, help="Diffusers' LoRA script, or the reference trainer's folder")
    parser.add_argument("--peer-path", type=Path, help="as for benchmarks/compare.py")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny models")
    args = parser.parse_args()
    args.out, args.work = args.out.resolve(), args.work.resolve()
    signal.signal(signal.SIGTERM, _on_signal)
    results = run(args)
    print((args.out / "table.md").read_text())
    return 1 if results.has_failed else 0


if __name__ == "__main__":
    sys.exit(main())

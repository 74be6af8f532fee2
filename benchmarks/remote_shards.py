"""What a dataset of shards on a server costs: a first job, and later ones, whose cache holds a part of the shards.

    python -m benchmarks.remote_shards --rows 10000 1000000
    python -m benchmarks.remote_shards --rows 1000000 --share 1 --no-ranges

The tars are those of `benchmarks.scale --layouts webdataset`, 1,000 images each, served by a process on this machine.
Each job has MAX_CACHE_BYTES at `--share` of the tars' bytes (default a quarter). Encodings are not cached
(MAX_ENCODED_BYTES=0), so that each job fetches all images that it shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

from benchmarks import measuring, scale, workloads
from benchmarks.bench_job import ROOT, Result, parts_of
from benchmarks.workloads import Workload

PRINTED: Final = (*scale.PRINTED, "wall s", "cpu s", "whole shards", "parts", "MB of shards in the cache")


@dataclass(frozen=True, slots=True)
class Counts:
    """The requests that the server has answered."""

    port: Synchronized[int]
    whole: Synchronized[int]
    parts: Synchronized[int]


class Handler(SimpleHTTPRequestHandler):
    """Serves files of a folder, whole or by one range."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, counts: Counts, has_ranges: bool, **more: Any) -> None:
        self.counts, self.has_ranges = counts, has_ranges
        super().__init__(*args, **more)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        counter = self.counts.parts if len(wanted) == 2 else self.counts.whole
        with counter.get_lock():
            counter.value += 1
        if len(wanted) != 2 or not self.has_ranges:
            super().do_GET()
            return
        path = Path(self.translate_path(self.path))
        start, end, size = int(wanted[0]), int(wanted[1]), path.stat().st_size
        with path.open("rb") as file:
            body = os.pread(file.fileno(), end + 1 - start, start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


def _serve(folder: Path, counts: Counts, ready: Event, has_ranges: bool) -> None:
    handler = partial(Handler, directory=str(folder), counts=counts, has_ranges=has_ranges)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    counts.port.value = server.server_port
    ready.set()
    server.serve_forever()


@contextlib.contextmanager
def serving(folder: Path, has_ranges: bool) -> Iterator[Counts]:
    """Serve a folder's files from another process."""
    counts = Counts(*(multiprocessing.Value("q", 0) for _ in range(3)))
    ready = multiprocessing.Event()
    process = multiprocessing.Process(target=_serve, args=(folder, counts, ready, has_ranges), daemon=True)
    process.start()
    ready.wait()
    try:
        yield counts
    finally:
        process.kill()
        process.join()


@dataclass(frozen=True, kw_only=True)
class RemoteWorkload(Workload):
    """A training on shards."""

    url: str

    def task(self) -> dict[str, Any]:
        return super().task() | {"dataset": {"url": self.url}}


def _run(workload: RemoteWorkload, folder: Path, cache: Path) -> Result:
    """Run a job, and return what was seen from outside, and its time to find the dataset."""
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps(workload.task()))
    out = folder / "out"
    command = [sys.executable, ROOT / "entrypoint.py", "--task", folder / "task.json", "--output-dir", out]
    shows = {"first step": '"event": "step"', "last step": f'"step": {workload.steps},'}
    watch = {name: partial(_shows, out / "progress.jsonl", words) for name, words in shows.items()}
    measured = measuring.run([*command, "--cache-dir", cache, "--device", "cpu"], log=folder / "log.txt", watch=watch)
    if measured.code != 0:
        raise SystemExit(f"the job failed ({measured.code}):\n{(folder / 'log.txt').read_text()[-2000:]}")
    seconds = json.loads((out / "result.json").read_text())["seconds"]
    return {f"{name} s": value for name, value in seconds.items()} | parts_of(measured, workload)


def _shows(log: Path, words: str) -> bool:
    return log.exists() and words in log.read_text()


def measure(workload: RemoteWorkload, counts: Counts, scratch: Path) -> dict[str, Result]:
    """A first job, and the third one; after each of them a plan."""
    found: dict[str, Result] = {}
    for number, name in enumerate(("first", "second", "later")):
        counts.whole.value = counts.parts.value = 0
        job = _run(workload, scratch / f"job-{number}", scratch / "cache")
        job |= {"whole shards": counts.whole.value, "parts": counts.parts.value}
        kept = sum(path.stat().st_size for path in (scratch / "cache/datasets/shards").glob("*.tar"))
        found[name] = job | {"MB of shards in the cache": kept / 1e6}
        found[name] |= scale.plan(workload, scratch / f"plan-{number}", scratch / "cache")
    del found["second"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--image-bytes", type=int, default=0, help="at least so many a file")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.25, help="of the shards' bytes, for the cache")
    parser.add_argument("--no-ranges", action="store_true", help="a server that sends whole files only")
    parser.add_argument("--work", type=Path, default=ROOT / "build/bench", help="where model and datasets are kept")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    args = parser.parse_args()
    model = workloads.build_model(args.work, "tiny", 64)
    report: dict[str, dict[str, Result]] = {}
    for rows in args.rows:
        folder = scale.build(args.work, "webdataset", rows, args.image_bytes).resolve()
        tars = sorted(folder.glob("*.tar"))
        bound = int(args.share * sum(path.stat().st_size for path in tars))
        os.environ |= {"MAX_CACHE_BYTES": str(bound), "MAX_ENCODED_BYTES": "0", "ALLOW_PRIVATE_URLS": "1"}
        with tempfile.TemporaryDirectory() as scratch, serving(folder, not args.no_ranges) as counts:
            workload = RemoteWorkload(
                model=model,
                dataset=folder,
                url=f"http://127.0.0.1:{counts.port.value}/train-{{000000..{len(tars) - 1:06}}}.tar",
                steps=args.steps,
                batch_size=1,
                resolution=64,
                precision="no",
                center_crop=True,
                validation_images=1,
            )
            found = measure(workload, counts, Path(scratch))
        report[f"{rows} rows"] = found
        print(f"{rows:,} rows in {len(tars):,} shards, cache of {bound / 1e6:,.1f} MB{'first':>12}{'later':>12}")
        for name in PRINTED:
            print(f"  {name:40}" + "".join(f"{found[when][name]:12.2f}" for when in found), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

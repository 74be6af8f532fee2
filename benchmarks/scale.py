"""What a dataset's size costs: time and memory until the first step, and of `--plan`, for more and more rows.

    python -m benchmarks.scale --layouts parquet --rows 100 10000 1000000
    python -m benchmarks.scale --layouts metadata sidecars webdataset --rows 100 10000

Images are bitmaps of 8 x 8 pixels, each another; `--image-bytes` makes their files larger. Each dataset is met
by a first job with an empty cache, and by later ones (two, of which the last is told), as in a chain.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measuring, workloads
from benchmarks.bench_job import ROOT, Result, run_job
from benchmarks.workloads import Workload

SIDE: Final = 8
ROWS_PER_BATCH: Final = 20_000
ROWS_PER_SHARD: Final = 1_000
_HEADER: Final = struct.pack("<2sIHHI", b"BM", 54 + 3 * SIDE * SIDE, 0, 0, 54) + struct.pack(
    "<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 3 * SIDE * SIDE, 0, 0, 0, 0
)
PRINTED: Final = (
    "plan: wall s",
    "plan: cpu s",
    "plan: peak rss MiB",
    "plan: peak anonymous MiB",
    "download s",
    "until the first step s",
    "cpu s until the first step",
    "peak rss MiB",
    "peak anonymous MiB",
)


def bitmaps(start: int, count: int, size: int) -> npt.NDArray[np.uint8]:
    """Windows bitmaps of random pixels, each followed by noise up to `size` bytes: uint8 (count, size)."""
    size = max(size, len(_HEADER) + 3 * SIDE * SIDE)
    files = np.random.default_rng(start).integers(0, 256, (count, size), dtype=np.uint8)
    files[:, : len(_HEADER)] = np.frombuffer(_HEADER, np.uint8)
    return files


def _batches(
    rows: int, size: int, most: int = ROWS_PER_BATCH, memory: int = 64 << 20
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    per_batch = max(1, min(most, memory // max(size, 1)))
    for start in range(0, rows, per_batch):
        yield start, bitmaps(start, min(per_batch, rows - start), size)


def _caption(index: int) -> str:
    return f"a pattern of noise, number {index}"


def write_parquet(folder: Path, rows: int, size: int) -> None:
    """One table as the Hub has them: {bytes, path} and a caption."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("text", pa.string())])
    with pq.ParquetWriter(folder / "train-00000-of-00001.parquet", schema) as writer:
        for start, files in _batches(rows, size):
            count, width = files.shape
            offsets = pa.py_buffer(np.arange(0, (count + 1) * width, width, dtype=np.int32))
            data = pa.Array.from_buffers(pa.binary(), count, [None, offsets, pa.py_buffer(files)])
            cells = pa.StructArray.from_arrays([data, pa.nulls(count, pa.string())], fields=list(image))
            captions = pa.array([_caption(start + row) for row in range(count)])
            writer.write_batch(pa.record_batch([cells, captions], schema=schema))


def write_metadata(folder: Path, rows: int, size: int) -> None:
    """Image files and a metadata.jsonl."""
    with (folder / "metadata.jsonl").open("w") as metadata:
        for start, files in _batches(rows, size):
            for row, file in enumerate(files, start):
                (folder / f"{row:07}.bmp").write_bytes(file.tobytes())
                metadata.write(json.dumps({"file_name": f"{row:07}.bmp", "text": _caption(row)}) + "\n")


def write_sidecars(folder: Path, rows: int, size: int) -> None:
    """Image files with a text file beside each."""
    for start, files in _batches(rows, size):
        for row, file in enumerate(files, start):
            (folder / f"{row:07}.bmp").write_bytes(file.tobytes())
            (folder / f"{row:07}.txt").write_text(_caption(row))


def write_webdataset(folder: Path, rows: int, size: int) -> None:
    """Tars of 1,000 images with a .txt each, without extended headers."""
    for shard, (start, files) in enumerate(_batches(rows, size, ROWS_PER_SHARD, 1 << 30)):
        with (folder / f"train-{shard:06}.tar").open("wb") as tar:
            for row, file in enumerate(files, start):
                tar.write(_member(f"{row:07}.bmp", file.tobytes()) + _member(f"{row:07}.txt", _caption(row).encode()))
            tar.write(bytes(2 * tarfile.BLOCKSIZE))


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


LAYOUTS: Final[dict[str, Callable[[Path, int, int], None]]] = {
    "parquet": write_parquet,
    "metadata": write_metadata,
    "sidecars": write_sidecars,
    "webdataset": write_webdataset,
}


def build(work: Path, layout: str, rows: int, size: int) -> Path:
    """A dataset of that layout and size, made on first use."""
    folder = work / f"scale-{layout}-{rows}-{size}"
    if not (folder / ".whole").exists():
        folder.mkdir(parents=True, exist_ok=True)
        LAYOUTS[layout](folder, rows, size)
        (folder / ".whole").touch()
    return folder


def plan(workload: Workload, folder: Path, cache: Path) -> Result:
    """What `--plan` takes."""
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps(workload.task()))
    command = [sys.executable, ROOT / "entrypoint.py", "--task", folder / "task.json", "--plan", "--device", "cpu"]
    measured = measuring.run(
        [*command, "--output-dir", folder / "out", "--cache-dir", cache], log=folder / "log.txt", watch={}
    )
    if measured.code != 0:
        raise SystemExit(f"--plan failed ({measured.code}):\n{(folder / 'log.txt').read_text()[-2000:]}")
    return {
        "plan: wall s": measured.wall,
        "plan: cpu s": measured.cpu,
        "plan: peak rss MiB": measured.peak_rss / 2**20,
        "plan: peak anonymous MiB": measured.peak_anonymous / 2**20,
    }


def measure(workload: Workload, scratch: Path) -> dict[str, Result]:
    """A first job, and a later one; each also as a plan."""
    found: dict[str, Result] = {}
    for number, name in enumerate(("first", "second", "later")):
        planned = plan(workload, scratch / f"plan-{number}", scratch / "cache-plan")
        job = run_job(workload, scratch / f"job-{number}", device="cpu", cache=scratch / "cache")
        found[name] = planned | job
    del found["second"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=["parquet"])
    parser.add_argument("--rows", nargs="+", type=int, default=[100, 10_000, 1_000_000])
    parser.add_argument("--image-bytes", type=int, default=0, help="at least so many a file")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--work", type=Path, default=ROOT / "build/bench", help="where model and datasets are kept")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    args = parser.parse_args()
    tiny = Workload(
        model=workloads.build_model(args.work, "tiny", 64),
        dataset=args.work,  # each measurement has another
        steps=args.steps,
        batch_size=1,
        resolution=64,
        precision="no",
        center_crop=True,
        validation_images=1,
    )
    report: dict[str, dict[str, Result]] = {}
    for layout in args.layouts:
        for rows in args.rows:
            dataset = build(args.work, layout, rows, args.image_bytes).resolve()
            with tempfile.TemporaryDirectory() as scratch:
                found = measure(replace(tiny, dataset=dataset), Path(scratch))
            report[f"{layout}, {rows} rows"] = found
            print(f"{layout}, {rows:,} rows{'first':>20}{'later':>12}")
            for name in PRINTED:
                print(f"  {name:30}" + "".join(f"{found[when][name]:12.2f}" for when in found), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What determinism costs: the same job with torch's deterministic mode on and off, in turn, as ratios.

python -m benchmarks.determinism --model tiny --resolution 64 --batch-size 4 --steps 200
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.bench_job import UNDETERMINED, Result, add_workload_arguments, read_workload, run_job
from benchmarks.compare import print_ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser)
    args = parser.parse_args()
    workload = read_workload(args)
    on: list[Result] = []
    off: list[Result] = []
    without = (sys.executable, UNDETERMINED)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.runs):
            folder = Path(scratch) / str(number)
            on.append(run_job(workload, folder / "on", device=args.device, cache=folder / "cache-on"))
            cache = folder / "cache-off"
            off.append(run_job(workload, folder / "off", device=args.device, cache=cache, program=without))
            print(f"run {number + 1} of {args.runs}", flush=True)
            if args.json:
                args.json.write_text(json.dumps({"on": on, "off": off}, indent=2) + "\n")
    print_ratios(on, off, names=("on", "off", "off / on"))


if __name__ == "__main__":
    main()

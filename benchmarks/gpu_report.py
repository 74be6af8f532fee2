"""What benchmarks/gpu.py has found: `results.json` with every figure, and `table.md` for docs/measurements/gpu.md."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

TARGETS: Final = {("sd15", 1): 50, ("sd15", 16): 100, ("sd15", 32): 100, ("sdxl", 1): 15}
"""Images per second, deterministic, on an H200: SD 1.5 at 512², XL at 1024²."""
SPEED: Final = "images/s after the first step"


@dataclass(slots=True, kw_only=True)
class Results:
    """All results so far."""

    is_rehearsal: bool
    machine: dict[str, Any] = field(default_factory=dict)
    tests: list[dict[str, Any]] = field(default_factory=list)
    tests_ending: str = "not run"
    rows: list[dict[str, Any]] = field(default_factory=list)
    peer: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_failed(self) -> bool:
        """Whether a part or a test failed; what there was no time for has not."""
        parts = [self.tests_ending, *(row["ending"] for row in self.rows), (self.peer or {}).get("ending")]
        return "failed" in parts or any(test["outcome"] == "failed" for test in self.tests)

    def count_tests(self) -> str:
        """Return how many tests passed, failed and were skipped, and whether there was time for all."""
        counts = Counter(test["outcome"] for test in self.tests)
        found = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none ended"
        return found if self.tests_ending in ("done", "failed") else f"{found} ({self.tests_ending} for the others)"


def write(results: Results, folder: Path) -> None:
    """Write both files anew; each is whole at every moment."""
    for name, text in (("results.json", json.dumps(asdict(results), indent=2) + "\n"), ("table.md", table(results))):
        new = folder / f"{name}.new"
        new.write_text(text)
        new.replace(folder / name)


def table(results: Results) -> str:
    """Return the results as Markdown."""
    lines = []
    if results.is_rehearsal:
        lines += ["**A rehearsal on the CPU with tiny models: these figures mean nothing.**", ""]
    machine = results.machine
    if machine:
        packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        lines += [
            f"{machine['gpus']} x {machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, "
            f"{machine['cores']} cores; Python {machine['python']}, {packages}. A matrix product of bf16 reaches "
            f"{machine['matrix product TFLOP/s']} TFLOP/s.",
            "",
        ]
    lines += [f"Tests marked `gpu`: {results.count_tests()}.", ""]
    lines += [f"- failed: `{test['test']}`" for test in results.tests if test["outcome"] == "failed"]
    lines += ["", "| bf16 | images/s | not deterministic | determinism costs | of the matrix product | target |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    measured = [row for row in results.rows if row["deterministic"]]
    lines += [_speed_line(row, results) for row in measured]
    lines += ["", "| bf16 | predicted memory, MiB | measured | predicted / measured |", "| --- | --- | --- | --- |"]
    lines += [_memory_line(row) for row in measured if row["found"]]
    lines += _peer_lines(results.peer)
    return "\n".join([*lines, "", *results.notes]).rstrip() + "\n"


def _name(row: dict[str, Any]) -> str:
    return f"{row['model']}, {row['resolution']}², batch {row['batch']}"


def _speed_line(row: dict[str, Any], results: Results) -> str:
    speed = row["found"].get(SPEED)
    if not speed:
        return f"| {_name(row)} | {row['ending']} | | | | {TARGETS.get((row['model'], row['batch']), '')} |"
    same = [other for other in results.rows if not other["deterministic"] and _name(other) == _name(row)]
    free = same[0]["found"].get(SPEED) if same else None
    cost = f"{100 * (1 - speed / free):.0f}%" if free else ""
    tflop = row["found"].get("denoiser TFLOP/s")
    share = f"{100 * tflop / results.machine['matrix product TFLOP/s']:.0f}%" if tflop else ""
    target = TARGETS.get((row["model"], row["batch"]), "")
    return f"| {_name(row)} | {speed:.1f} | {f'{free:.1f}' if free else ''} | {cost} | {share} | {target} |"


def _memory_line(row: dict[str, Any]) -> str:
    predicted, measured = (row["found"].get(f"{name} MiB") for name in ("predicted memory", "peak memory by itself"))
    ratio = f"{predicted / measured:.2f}" if predicted and measured else ""
    return f"| {_name(row)} | {predicted or 0:.0f} | {measured or 0:.0f} | {ratio} |"


def _peer_lines(peer: dict[str, Any] | None) -> list[str]:
    if peer is None:
        return []
    if not peer["found"]:
        return ["", f"Peer `{peer['program']}`: {peer['ending']}."]
    own, other = peer["found"]["own"][0], peer["found"]["peer"][0]
    lines = ["", f"| {_name(peer)}, without images | this job | `{Path(peer['program']).name}` | peer / this job |"]
    lines += ["| --- | --- | --- | --- |"]
    for name in ("until the first step s", "wall s of a further step", "wall s"):
        lines.append(f"| {name} | {own[name]:.3f} | {other[name]:.3f} | {other[name] / own[name]:.2f} |")
    return lines

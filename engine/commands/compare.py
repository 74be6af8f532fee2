"""Say how alike two results are, which may come from different devices: `entrypoint.py compare A B`.

Prints the distance between the trained weights, as the method that published them measures it, and between the
validation images' perceptual hashes, of clips frame by frame.
Exit codes: 0 compared, 2 a wrong flag, 5 a result that cannot be read, 70 a bug.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from engine.commands.diffs.picture_diff import compare_pictures
from engine.commands.program import program
from engine.core.errors import CheckpointError
from engine.core.messages import plural
from engine.training.methods.distances import Distances
from engine.training.methods.registry import method_in


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Compare two results, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="entrypoint.py compare", description="Say how alike two results are.", allow_abbrev=False
    )
    parser.add_argument("results", type=Path, nargs=2, metavar="RESULT", help="an output folder, or its checkpoint/")
    print("\n".join(compare(*parser.parse_args(argv).results)))
    return 0


def compare(one: Path, other: Path) -> list[str]:
    """Describe how far apart two results are, in lines for a person.

    Raises:
        CheckpointError: one of them cannot be read, or they cannot be compared.
    """
    checkpoints = [_checkpoint(folder) for folder in (one, other)]
    method, others = (method_in(checkpoint) for checkpoint in checkpoints)
    if method is not others:
        nouns = f"{method.words.noun}, the other {others.words.noun}"
        raise CheckpointError(f"one result is {nouns}: their weights cannot be compared")
    return _describe(method.distances(*checkpoints)) + compare_pictures(one / "validation", other / "validation")


def _checkpoint(folder: Path) -> Path:
    """Return the checkpoint of an output folder; a checkpoint's own folder unchanged."""
    return folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder


def _describe(found: Distances) -> list[str]:
    total = _ratio(_length(found.apart.values()), _length(found.norms.values()))
    relative = {name: _ratio(apart, found.norms[name]) for name, apart in found.apart.items()}
    worst = max(relative, key=lambda name: relative[name])
    return [
        f"weights  relative distance {total:.3e} over {plural(len(relative), found.unit)} ({found.scale})",
        f"         largest {relative[worst]:.3e}, in {worst!r}",
    ]


def _length(values: Iterable[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def _ratio(distance: float, size: float) -> float:
    return distance / size if size else 0.0

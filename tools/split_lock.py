"""Write a whole lock, given as a path, as two: what both images share, and what torch's CUDA build is and brings."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


def entries(text: str) -> list[str]:
    """Return each distribution's lines: the version, then its hashes."""
    return re.findall(r"^[A-Za-z][^\n]*\n(?:[ ][^\n]*\n)*", text, re.MULTILINE)


def head(path: Path) -> str:
    """Return a lock's lines before its first distribution, which stay."""
    return re.split(r"^(?=[A-Za-z])", path.read_text(), maxsplit=1, flags=re.MULTILINE)[0]


def main(lock: Path) -> None:
    """Replace what the two locks hold by the entries of `lock`."""
    found = entries(lock.read_text())
    for name, is_cuda in (("requirements-common.txt", False), ("requirements-cuda.txt", True)):
        path = ROOT / name
        path.write_text(head(path) + "".join(entry for entry in found if bool(CUDA.match(entry)) == is_cuda))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Inside the image: import every installed distribution, and tell what takes the space. Fails on a broken import."""

import importlib
import importlib.metadata
import os
import sys
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
CUDA_LIBRARIES = ("libtorch_cuda", "libc10_cuda", "libcaffe2_nvrtc", "libtorch_nvshmem")


def tree_bytes(path: Path) -> int:
    """Bytes of all files below a path, links not followed."""
    if path.is_file() or path.is_symlink():
        return path.lstat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


def import_everything() -> tuple[int, bool]:
    """Import what every distribution brings on its top level; how many modules these were, and whether all could be."""
    by_module = importlib.metadata.packages_distributions()
    modules = sorted(name for name in by_module if name.isidentifier() and (SITE / name).exists())
    failed = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # every one is to be told
            failed[name] = error
    for name, error in failed.items():
        print(f"cannot import {name}: {type(error).__name__}: {error}", file=sys.stderr)
    return len(modules), not failed


def main() -> int:
    """Print what was found; 1 when something cannot be imported."""
    count, is_whole = import_everything()
    sizes = {path.name: tree_bytes(path) for path in SITE.iterdir()}
    torch_lib = SITE / "torch" / "lib"
    cuda = sum(sizes.get(name, 0) for name in ("nvidia", "triton", "cuda"))
    cuda += sum(tree_bytes(path) for path in torch_lib.iterdir() if path.name.startswith(CUDA_LIBRARIES))
    total = sum(sizes.values())
    distributions = len(list(importlib.metadata.distributions()))
    print(f"{distributions} distributions, {count} modules imported")
    print(f"  {total / 1e6:8,.1f} MB  in all, of which CUDA's libraries {cuda / total:.0%}")
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"  {size / 1e6:8,.1f} MB  {name}")
    print(f"  {tree_bytes(Path('/app')) / 1e6:8,.1f} MB  /app: the job, its demo and base model")
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())

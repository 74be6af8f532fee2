"""The image's two locks say the same as requirements.txt, which the tests run with."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins(name):
    """Each distribution's version; names as pip compares them."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", distribution).lower(): version for distribution, version in lines}


def test_cuda_adds_only_its_libraries():
    common, cuda = pins("requirements.txt"), pins("requirements-cuda.txt")
    assert len(common) > 50
    assert {name: cuda.get(name) for name in common} == common
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in set(cuda) - set(common))


def test_every_file_of_the_cuda_lock_has_a_hash():
    text = (ROOT / "requirements-cuda.txt").read_text()
    entries = re.split(r"\n(?=[A-Za-z])", text[text.index("accelerate") :])
    assert len(entries) == len(pins("requirements-cuda.txt"))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


def test_the_cpu_lock_differs_in_torch_alone():
    assert "-r requirements.txt\n" in (ROOT / "requirements-cpu.txt").read_text()
    assert pins("requirements-cpu.txt") == {"torch": pins("requirements.txt")["torch"] + "+cpu"}

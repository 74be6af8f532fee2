"""The images' locks say the same as requirements.txt, which the tests run with; and bases are pinned."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMMON = "requirements-common.txt"
LOCKS = (COMMON, "requirements-cuda.txt", "requirements-cpu.txt")


def pins(name):
    """Each distribution's version; names as pip compares them."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", distribution).lower(): version for distribution, version in lines}


def test_the_common_lock_is_everything_but_torch():
    expected = pins("requirements.txt")
    del expected["torch"]
    assert len(expected) > 50 and pins(COMMON) == expected


def test_cuda_adds_only_its_libraries():
    cuda = pins("requirements-cuda.txt")
    assert cuda["torch"] == pins("requirements.txt")["torch"]
    assert all(name.startswith(("torch", "nvidia-", "cuda-", "triton")) for name in cuda)


def test_the_cpu_lock_adds_torch_alone():
    assert pins("requirements-cpu.txt") == {"torch": pins("requirements.txt")["torch"] + "+cpu"}


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_has_a_hash(name):
    text = (ROOT / name).read_text()
    assert (f"-r {COMMON}\n" in text) == (name != COMMON)
    entries = re.split(r"^(?=[A-Za-z])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(name))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


def test_a_whole_lock_is_split_into_the_same_two(tmp_path):
    """`make lock` without the download: what the two files hold, as one, gives the two files again."""
    entries = [
        text
        for name in LOCKS[:2]
        for text in re.findall(r"^[A-Za-z][^\n]*\n(?: .*\n)*", (ROOT / name).read_text(), re.M)
    ]
    assert len(entries) == len(pins(LOCKS[0])) + len(pins(LOCKS[1]))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "split_lock.py").write_bytes((ROOT / "tools/split_lock.py").read_bytes())
    for name in LOCKS[:2]:
        (tmp_path / name).write_text((ROOT / name).read_text().split("==")[0].rpartition("\n")[0] + "\n")
    (tmp_path / "lock").write_text("".join(sorted(entries, key=str.lower)))
    subprocess.run([sys.executable, tools / "split_lock.py", tmp_path / "lock"], check=True)
    for name in LOCKS[:2]:
        assert sorted((tmp_path / name).read_text().splitlines()) == sorted((ROOT / name).read_text().splitlines())


def test_bases_are_pinned_by_digest():
    """And the CPU image's is the same in both places."""
    pinned = r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}"
    (cuda,) = re.findall(r"^ARG BASE_IMAGE=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    (cpu,) = re.findall(r"^cpu_base=(.+)$", (ROOT / "tools/image.sh").read_text(), re.MULTILINE)
    assert re.fullmatch(pinned, cuda) and re.fullmatch(pinned, cpu)
    demo = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["demo"]
    assert demo["build"]["args"]["BASE_IMAGE"] == f"${{CPU_BASE_IMAGE:-{cpu}}}"

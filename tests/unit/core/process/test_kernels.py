"""What chooses kernels is told apart, and nothing else is."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from engine.core.process import kernels

ROOT = Path(__file__).parents[4]

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
microcode\t: 0xffffffff
cpu MHz\t\t: 2699.998

processor\t: 1
vendor_id\t: Another
"""
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    "text, expected", [(CPUINFO, "GenuineIntel 6 143"), (ARM, "0x41 0x1 0xd40"), ("", None), (None, None)]
)
def test_the_model_has_vendor_and_numbers_and_no_frequency(tmp_path, monkeypatch, text, expected):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(kernels, "_CPUINFO", path)
    assert kernels._model() == expected


def test_caches_have_size_and_number_of_processors_that_share_them(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "_CACHES", tmp_path)
    assert kernels._caches() is None
    for index, (kind, size, shared) in enumerate(
        [
            ("Data", "48K", "00000003"),
            ("Instruction", "32K", "3"),
            ("Unified", "2048K", "3"),
            ("Unified", "1M", "f,0ff"),
        ]
    ):
        (tmp_path / f"index{index}").mkdir()
        for name, value in (("type", kind), ("size", size), ("shared_cpu_map", shared)):
            (tmp_path / f"index{index}" / name).write_text(value + "\n")
    assert kernels._caches() == "48K/2 2048K/2 1M/12"


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"MKL_CBWR": "COMPATIBLE"}, {"MKL_CBWR": "COMPATIBLE"}),
        ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
        ({"DNNL_MAX_CPU_ISA": "SSE41"}, {"DNNL_MAX_CPU_ISA": "SSE41"}),
        ({"ATEN_CPU_CAPABILITY": "default", "HOME": "/h"}, {"ATEN_CPU_CAPABILITY": "default"}),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.cpu.hwcaps=-AVX2:glibc.pthread.rseq=0"},
            {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"},
        ),
        ({"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}, {}),
        ({"MKL_CBWR": "", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, {}),
    ],
)
def test_variables_that_choose_kernels_are_told_and_no_others(variables, expected):
    assert kernels.describe_environment(variables) == expected


def test_a_value_that_is_no_text_is_escaped():
    told = kernels.describe_environment({"MKL_CBWR": os.fsdecode(b"A\xff")})
    assert json.dumps(told, ensure_ascii=False).encode() == b'{"MKL_CBWR": "A\\\\udcff"}'


COMPUTE = """
import json, math, sys, torch
from engine.core.process import kernels
from engine.results import provenance as world
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
one, two = torch.randn(77, 320, generator=generator), torch.randn(320, 640, generator=generator)
image, weight = torch.randn(1, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
found = (one @ two, torch.nn.functional.conv2d(image, weight, padding=1), torch.exp(image))
bits = [hash(tensor.numpy().tobytes()) for tensor in found]
bits.append([math.sin(k * 0.37) * math.exp(k * 0.01) for k in range(999)])
json.dump([world.describe_device(torch.device("cpu")), bits], sys.stdout)
"""


def computed(**variables):
    """How a process of its own describes the CPU, and the bits of operations that every training consists of."""
    kept = {name: value for name, value in os.environ.items() if name not in (*kernels.VARIABLES, "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE],
        cwd=ROOT,
        env=kept | {"PYTHONHASHSEED": "0"} | variables,
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def usual():
    return computed()


@pytest.mark.long
@pytest.mark.skipif(platform.machine() != "x86_64", reason="MKL's and oneDNN's variables name x86-64's instructions")
@pytest.mark.parametrize(
    "variables", [{"MKL_CBWR": "COMPATIBLE"}, pytest.param({"ONEDNN_MAX_CPU_ISA": "SSE41"}, marks=pytest.mark.slow)]
)
def test_what_computes_otherwise_describes_itself_otherwise(usual, variables):
    """MKL and oneDNN are made to choose other kernels, as they would on another processor with the same ATen level."""
    device, bits = computed(**variables)
    assert bits != usual[1], "these kernels were expected to differ"
    assert device != usual[0] and device["environment"] == variables


@pytest.mark.slow
def test_the_same_kernels_give_the_same_bits(usual):
    assert computed() == usual

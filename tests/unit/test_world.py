"""What the manifest says about where a result was made."""

import json
import platform
import re
import socket

import pytest
import torch

from engine import __version__, world


def test_versions_of_everything_the_bits_depend_on():
    found = world.versions()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["sd-lora-task"] == __version__ and found["python"] == platform.python_version()
    assert {"diffusers", "transformers", "peft", "numpy", "pillow", "safetensors"} <= found.keys()


def test_a_cpu_is_its_instruction_set_and_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = world.describe_device(torch.device("cpu"))
        torch.set_num_threads(2)
        two = world.describe_device(torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert one["type"] == "cpu" and one["instructions"] and one["machine"] == platform.machine()
    assert (one["threads"], two["threads"]) == (1, 2)


def test_neither_host_nor_path():
    text = json.dumps([world.versions(), world.describe_device(torch.device("cpu"))])
    # Of the slashes only those of the caches' sizes.
    assert socket.gethostname() not in text and not re.search(r"/(?!\d+\b)", text)


@pytest.mark.parametrize(
    "text, version",
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:04:59 UTC 2025\n", "580.65.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n", "580.82.07"),
        ("something else", None),
    ],
)
def test_driver_version(tmp_path, monkeypatch, text, version):
    path = tmp_path / "version"
    path.write_text(text)
    monkeypatch.setattr(world, "_DRIVER", path)
    assert world._driver_version() == version
    monkeypatch.setattr(world, "_DRIVER", tmp_path / "no-such-file")
    assert world._driver_version() is None

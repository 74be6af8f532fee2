"""What the manifest says about where a result was made."""

import json
import platform
import re
import socket

import pytest
import torch

from engine import __version__
from engine.data.media.registry import MEDIA
from engine.results import provenance
from engine.task.task import Dataset


def test_versions_of_everything_the_bits_depend_on():
    found = provenance.versions()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["sd-lora-task"] == __version__ and found["python"] == platform.python_version()
    assert {"diffusers", "transformers", "peft", "numpy", "pillow", "safetensors"} <= found.keys()


def test_a_cpu_is_its_instruction_set_and_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = provenance.describe_device(torch.device("cpu"))
        torch.set_num_threads(2)
        two = provenance.describe_device(torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert one["type"] == "cpu" and one["instructions"] and one["machine"] == platform.machine()
    assert (one["threads"], two["threads"]) == (1, 2)


def test_neither_host_nor_path():
    text = json.dumps([provenance.versions(), provenance.describe_device(torch.device("cpu"))])
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
    monkeypatch.setattr(provenance, "_DRIVER", path)
    assert provenance.driver_version() == version
    monkeypatch.setattr(provenance, "_DRIVER", tmp_path / "no-such-file")
    assert provenance.driver_version() is None


A, B = ({"versions": {"torch": "2"}, "device": {"instructions": name}} for name in ("AVX2", "DEFAULT"))


class TestGoingOn:
    def test_one_place_leaves_no_trace_however_often_it_was_interrupted(self):
        places = provenance.extended_origins([], 0, A)
        for step in (3, 3, 7):
            places = provenance.extended_origins(json.loads(json.dumps(places)), step, A)
        assert provenance.origin_of_result(places, 9) == A

    def test_each_change_begins_a_range(self):
        places = provenance.extended_origins(
            provenance.extended_origins(provenance.extended_origins([], 2, A), 5, B), 8, A
        )
        assert provenance.origin_of_result(places, 9) == A | {
            "origins": [
                {"from_step": 2, "to_step": 5, **A},
                {"from_step": 5, "to_step": 8, **B},
                {"from_step": 8, "to_step": 9, **A},
            ]
        }

    @pytest.mark.parametrize("other", [A | {"versions": {"torch": "3"}}, A | {"device": {}}])
    def test_another_version_is_another_place_too(self, other):
        assert len(provenance.extended_origins(provenance.extended_origins([], 0, A), 4, other)) == 2

    def test_who_only_drew_the_images_is_told(self):
        found = provenance.origin_of_result(provenance.extended_origins(provenance.extended_origins([], 0, A), 9, B), 9)
        assert found["device"] == B["device"] and found["origins"][-1] == {"from_step": 9, "to_step": 9, **B}


def test_what_decodes_clips_is_recorded_for_clips_alone():
    assert "av" not in provenance.versions()
    libraries = MEDIA["video"].make(Dataset(name="d")).libraries
    assert libraries and set(libraries) == set(provenance.versions(libraries)) - set(provenance.versions())
    assert MEDIA["image"].make(Dataset(name="d")).libraries == ()

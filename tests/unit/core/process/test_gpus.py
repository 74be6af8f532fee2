"""GPUs are counted without torch."""

import ctypes
from types import SimpleNamespace

import pytest

from engine.core.process import gpus
from engine.job.advice.precheck import check_device


def driver_of(count, *, starts=True):
    def tell(pointer):
        pointer._obj.value = count
        return 0

    return SimpleNamespace(cuInit=lambda flags: 0 if starts else 100, cuDeviceGetCount=tell)


@pytest.mark.parametrize("count, starts, found", [(2, True, 2), (0, True, 0), (3, False, 0)])
def test_the_driver_is_asked(monkeypatch, count, starts, found):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver_of(count, starts=starts))
    assert gpus.num_gpus() == found


def test_no_driver_is_no_gpu(monkeypatch):
    monkeypatch.setattr(gpus, "_LIBRARY", "libnothing.so.1")
    assert gpus.num_gpus() == 0


def test_the_plan_notes_that_there_is_none(monkeypatch):
    monkeypatch.setattr("engine.job.advice.precheck.num_gpus", lambda: 0)
    (line,) = check_device(SimpleNamespace(device="cuda"))
    assert line.startswith("note: no GPU is visible here") and "--gpus all" in line and "DEVICE=cpu" in line
    assert check_device(SimpleNamespace(device="cpu")) == []
    monkeypatch.setattr("engine.job.advice.precheck.num_gpus", lambda: 1)
    assert check_device(SimpleNamespace(device="cuda")) == []

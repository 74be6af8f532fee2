"""Datasets as if they were downloaded, or on the Hub."""

import threading
import time
import types

import pytest

from engine.core.files import stat_cache
from engine.data import fetch
from engine.data.dataset.fingerprints import fingerprint
from tests.support.datasets import CAPTIONS, COMMIT, PICTURES


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Stands for a finished download: dataset.url gives the folder `tmp_path/fetched`."""
    monkeypatch.setattr(fetch, "fetch_dataset", lambda url, cache_dir, **options: tmp_path / "fetched")
    secret = tmp_path / "secret.png"
    secret.write_bytes(PICTURES[0])
    return tmp_path / "fetched"


@pytest.fixture
def computed(monkeypatch):
    """How often a fingerprint was computed; files count as settled after a tick of the kernel's clock."""
    from engine.data.dataset import fingerprints as module

    found = []
    monkeypatch.setattr(stat_cache, "SETTLED_NS", 0)
    monkeypatch.setattr(stat_cache, "_keeps_change_times", lambda device: True)
    monkeypatch.setattr(module, "fingerprint", lambda parts: found.append(1) or fingerprint(parts))
    return found


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """The Hub as far as the code sees it: `load_dataset` and `repo_info`, with a journal of calls."""
    import datasets
    import huggingface_hub

    calls = []
    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "text": CAPTIONS}
    state = types.SimpleNamespace(calls=calls, splits={"train": datasets.Dataset.from_dict(rows)}, trouble=[])

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if state.trouble:
            raise state.trouble.pop(0)
        return datasets.DatasetDict(state.splits)

    def repo_info(self, repo_id, *, repo_type, revision):
        calls.append(("repo_info", repo_id, revision))
        return types.SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    real_sleep, here = time.sleep, threading.current_thread()

    def sleep(seconds):  # other tests' server threads may sleep too
        if threading.current_thread() is here:
            calls.append(("sleep", seconds))
        else:
            real_sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return state

"""Datasets on the Hub: at a commit, within their caches, and what is made of the Hub's errors."""

import zipfile
from pathlib import Path

import pytest

from engine.core.errors import DatasetError, ModelError, TemporaryError
from engine.data.fetch import hub
from engine.data.media.geometry import UnreadableImage
from tests.support.datasets import COMMIT, EXPECTED, PICTURES, content, metadata_jsonl, opened


def test_hub_dataset_is_loaded_at_a_commit(fake_hub, tmp_path):
    dataset = opened(tmp_path, name="someone/things", config_name="small")
    assert content(dataset) == EXPECTED
    assert dataset.revision == COMMIT
    assert dataset.fingerprint == opened(tmp_path, name=metadata_jsonl(tmp_path / "reference")).fingerprint
    (args, kwargs) = fake_hub.calls[1]
    assert args == ("someone/things", "small")
    assert kwargs["revision"] == COMMIT
    assert Path(kwargs["cache_dir"]).is_relative_to(tmp_path / "cache")
    assert "trust_remote_code" not in kwargs


def test_hub_dataset_stays_at_the_commit_of_its_chain(fake_hub, tmp_path):
    assert opened(tmp_path, name="someone/things", revision="f" * 40).revision == "f" * 40
    assert len(fake_hub.calls) == 1


def test_prepared_hub_data_need_the_hub_no_more(fake_hub, tmp_path):
    import datasets

    folder = tmp_path / "cache/hub" / f"someone--things@{COMMIT}"
    fake_hub.splits["train"].save_to_disk(folder / "saved")
    fake_hub.splits["train"] = datasets.load_from_disk(folder / "saved")
    first = opened(tmp_path, name="someone/things", revision=COMMIT)
    second = opened(tmp_path, name="someone/things", revision=COMMIT)
    assert content(second) == EXPECTED
    assert second.fingerprint == first.fingerprint
    assert len(fake_hub.calls) == 1


def test_hub_splits(fake_hub, tmp_path):
    fake_hub.splits = {"only": fake_hub.splits["train"]}
    assert len(opened(tmp_path, name="someone/things")) == 3
    fake_hub.splits = {"b": fake_hub.splits["only"], "a": fake_hub.splits["only"]}
    with pytest.raises(DatasetError, match=r"someone/things.*'train'.*a, b"):
        opened(tmp_path, name="someone/things")


def test_hub_columns_of_text_are_no_images(fake_hub, tmp_path):
    with pytest.raises(DatasetError, match="holds text, not images"):
        opened(tmp_path, name="someone/things", image_column="text")


def test_hub_rows_reach_only_into_the_caches(fake_hub, tmp_path):
    import datasets

    cached = tmp_path / "hub/x/1.png"
    archive = tmp_path / "hub/x/2.zip"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(PICTURES[0])
    with zipfile.ZipFile(archive, "w") as opened_zip:
        opened_zip.writestr("in/2.png", PICTURES[1])
    (tmp_path / "secret.png").write_bytes(PICTURES[2])

    def with_paths(*paths):
        cells = [{"bytes": None, "path": str(path)} for path in paths]
        fake_hub.splits = {"train": datasets.Dataset.from_dict({"image": cells, "text": ["x"] * len(cells)})}
        return opened(tmp_path, name="someone/things")

    dataset = with_paths(cached, f"zip://in/2.png::{archive}", f"zip://no.png::{archive}")
    assert [dataset.image_bytes(0), dataset.image_bytes(1)] == PICTURES[:2]
    with pytest.raises(UnreadableImage):
        dataset.image_bytes(2)
    for outside in (tmp_path / "secret.png", "https://example.org/x.png", f"zip://x::{tmp_path}/s.zip"):
        with pytest.raises(DatasetError, match="row 1"):
            with_paths(cached, outside)


def hub_error(status: int, kind="HfHubHTTPError"):
    import httpx2
    import huggingface_hub.errors

    response = httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/x"))
    return getattr(huggingface_hub.errors, kind)(f"{status}", response=response)


def wrapped(cause):
    error = RuntimeError("a library's own words")
    error.__cause__ = cause
    return error


TROUBLES = {
    "connection": lambda: ConnectionError("no"),
    "time-out": TimeoutError,
    "503": lambda: hub_error(503),
    "429": lambda: hub_error(429),
    "wrapped": lambda: wrapped(hub_error(502)),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_trouble_is_tried_four_times_then_temporary(fake_hub, tmp_path, trouble):
    fake_hub.trouble = [trouble() for _ in range(3)]
    assert len(opened(tmp_path, name="someone/things")) == 3
    waits = [call[1] for call in fake_hub.calls if call[0] == "sleep"]
    assert len(waits) == 3
    assert sum(waits) < 60
    fake_hub.trouble = [trouble() for _ in range(4)]
    with pytest.raises(TemporaryError, match="someone/things"):
        opened(tmp_path, name="someone/things")


REFUSALS = {
    "not found": (lambda: hub_error(404, "RepositoryNotFoundError"), "HF_TOKEN"),
    "gated": (lambda: hub_error(403, "GatedRepoError"), "accept its terms.*HF_TOKEN"),
    "revision": (lambda: hub_error(404, "RevisionNotFoundError"), "no such revision"),
    "forbidden": (lambda: hub_error(403), "HF_TOKEN"),
    "wrapped": (lambda: wrapped(hub_error(404, "RepositoryNotFoundError")), "HF_TOKEN"),
    "unknown configuration": (lambda: ValueError("BuilderConfig 'x' not found. Available: y"), "Available: y"),
    "gone": (lambda: FileNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "gated.*HF_TOKEN"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_dataset_errors_at_once(case, fake_hub, tmp_path):
    build, message = REFUSALS[case]
    fake_hub.trouble = [build()]
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path, name="someone/things")
    assert not [call for call in fake_hub.calls if call[0] == "sleep"]


def test_offline_uses_the_commit_last_seen(fake_hub, tmp_path, monkeypatch):
    import huggingface_hub

    assert hub.resolve_commit("someone/things", "dataset", "main") == COMMIT
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fake_hub.calls.clear()
    assert hub.resolve_commit("someone/things", "dataset", "main") == COMMIT
    assert not fake_hub.calls
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        hub.resolve_commit("someone/else", "model", "main")
    fake_hub.trouble = [ConnectionError("offline mode is enabled")]
    with pytest.raises(DatasetError):
        opened(tmp_path, name="someone/things")

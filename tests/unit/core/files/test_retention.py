"""What the cache keeps: what is in use stays, and of the rest what was used last."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from engine.core.files import retention
from engine.core.files.retention import hold, hold_repository, prune
from engine.core.limits import Limits
from engine.data.dataset.open import open_dataset
from engine.data.fetch import fetch_dataset, fetch_file
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
from tests.support.fakes import png

ROOT = Path(__file__).parents[4]
LARGE = {
    "dataset": "datasets/content/{}",
    "model": "models/content/{}.safetensors",
    "prepared Hub dataset": "hub/{}@commit",
    "table": "tables/{}.arrow",
    "Hub model": "huggingface/hub/models--a--{}",
    "Hub dataset": "huggingface/hub/datasets--a--{}",
}
SMALL = {"encoding": "encoded/ab/cd/" + "ab" * 32, "note": "notes/" + "cd" * 32}


@pytest.fixture(autouse=True)
def own_process(monkeypatch, tmp_path):
    """What a test holds is let go at its end."""
    monkeypatch.setattr(retention, "_opened", {})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface" / "hub"))
    yield
    for descriptor in retention._opened.values():
        os.close(descriptor)


def make(cache, place, name, used, size=100):
    """An entry of `size` bytes, last used at `used`."""
    path = cache / place.format(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if place.endswith((".safetensors", ".arrow")) or place in SMALL.values():
        path.write_bytes(b"x" * size)
    else:
        (path / "inside").mkdir(parents=True)
        (path / "inside" / "a").write_bytes(b"x" * (size - 10))
        (path / "b").write_bytes(b"x" * 10)
    os.utime(path, (used, used))
    return path


def everything(cache):
    """One entry of each kind, used one second after the other."""
    places = LARGE | SMALL
    return {kind: make(cache, place, "one", 1000 + k) for k, (kind, place) in enumerate(places.items())}


def holding_script(cache, entry, then=""):
    return (
        "from pathlib import Path\nfrom engine.core.files.retention import hold\n"
        f"entry = Path({str(entry)!r})\nhold(Path({str(cache)!r}), entry)\n{then}"
    )


class TestPrune:
    def test_removes_what_was_not_used_for_longest_of_every_kind(self, tmp_path):
        paths = list(everything(tmp_path).values())
        for left in range(len(paths), -1, -1):
            done = prune(tmp_path, 100 * left)
            assert [path for path in paths if path.exists()] == paths[len(paths) - left :]
            assert done.num_bytes_left == 100 * left
        assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "in_use"] == []

    def test_what_fits_stays_and_nothing_is_said(self, tmp_path):
        paths = everything(tmp_path)
        assert not prune(tmp_path, 100 * len(paths)).did_anything
        assert all(path.exists() for path in paths.values())
        assert not prune(tmp_path / "no such folder", 0).did_anything

    def test_being_held_is_being_used(self, tmp_path):
        old, new = (make(tmp_path, LARGE["dataset"], name, used) for name, used in (("old", 1000), ("new", 2000)))
        subprocess.run([sys.executable, "-c", holding_script(tmp_path, old)], cwd=ROOT, check=True, timeout=60)
        prune(tmp_path, 100)
        assert old.exists() and not new.exists()

    @pytest.mark.parametrize("kind", LARGE)
    def test_what_is_in_use_stays_until_its_process_ends_however(self, tmp_path, kind):
        path = make(tmp_path, LARGE[kind], "one", 1000)
        other = make(tmp_path, LARGE[kind], "two", 2000)
        script = holding_script(tmp_path, path, "print(flush=True); input()")
        with subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            try:
                process.stdout.readline()
                done = prune(tmp_path, 0)
                assert path.exists() and not other.exists()
                assert (done.num_in_use, done.num_bytes_left) == (1, 100)
                assert done.describe(tmp_path, 0).endswith("(MAX_CACHE_BYTES): 1 entry in use")
            finally:
                process.send_signal(signal.SIGKILL)
        assert prune(tmp_path, 0).removed == {kind: 1} and not path.exists()

    def test_what_this_process_itself_holds_stays_also_before_it_is_there(self, tmp_path):
        hold(tmp_path, tmp_path / "datasets/content/one")
        hold_repository(tmp_path, "a/one", "model")
        paths = [make(tmp_path, LARGE[kind], "one", 1000) for kind in ("dataset", "Hub model")]
        prune(tmp_path, 0)
        assert all(path.exists() for path in paths)

    def test_a_cache_that_is_reached_by_a_link_has_the_same_marks(self, tmp_path):
        path = make(tmp_path / "real", LARGE["dataset"], "one", 1000)
        (tmp_path / "link").symlink_to("real")
        hold(tmp_path / "link", tmp_path / "link" / path.relative_to(tmp_path / "real"))
        prune(tmp_path / "real", 0)
        assert path.exists()

    def test_the_hubs_files_outside_of_the_cache_are_not_ours(self, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
        path = make(tmp_path, "elsewhere/models--a--{}", "one", 1000)
        hold_repository(tmp_path / "cache", "a/one", "model")
        prune(tmp_path / "cache", 0)
        assert path.exists() and not (tmp_path / "cache").exists()

    def test_files_of_others_stay(self, tmp_path):
        for name in ("mine/a", "huggingface/token", "datasets/url/a.json", "in_use/x"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        prune(tmp_path, 0)
        assert all((tmp_path / name).exists() for name in ("mine/a", "huggingface/token", "datasets/url/a.json"))

    @pytest.mark.parametrize(
        "place", ["notes", "encoded", "datasets", "datasets/content", "datasets/url", "hub", "tables"]
    )
    def test_what_a_link_leads_to_stays(self, tmp_path, place):
        """Whoever may write to the cache must not have the program remove what is elsewhere."""
        home, cache = tmp_path / "home", tmp_path / "cache"
        for name in ("thesis", "data.arrow", "film.part", "content/a", "url/a.part", "folder/b"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(b"x")
        (cache / place).parent.mkdir(parents=True, exist_ok=True)
        (cache / place).symlink_to(home)
        before = sorted(home.rglob("*"))
        prune(cache, 0)
        assert sorted(home.rglob("*")) == before

    def test_a_link_as_an_entry_is_removed_and_not_what_it_leads_to(self, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis").write_bytes(b"x")
        (tmp_path / "cache/datasets/content").mkdir(parents=True)
        (tmp_path / "cache/datasets/content/one").symlink_to(tmp_path / "home")
        prune(tmp_path / "cache", 0)
        assert (tmp_path / "home" / "thesis").exists()
        assert list((tmp_path / "cache/datasets/content").iterdir()) == []

    def test_unfinished_downloads_go_unless_somebody_is_at_them(self, tmp_path):
        from engine.core.files.file_lock import locked

        urls = tmp_path / "datasets/url"
        urls.mkdir(parents=True)
        for key in ("alive", "dead"):
            (urls / f"{key}.part").write_bytes(b"x" * 100)
            if key == "alive":  # a lock that is gone is nobody's
                (urls / f"{key}.lock").touch()
            make(tmp_path, "datasets/content/.{}.building", key, 1000)
        with locked(urls / "alive.lock", "dataset", print):
            assert prune(tmp_path, 0).removed == {"unfinished dataset": 2}
        assert sorted(path.name for path in urls.iterdir()) == ["alive.lock", "alive.part", "dead.lock"]
        assert [path.name for path in (tmp_path / "datasets/content").iterdir()] == [".alive.building"]

    def test_what_a_killed_prune_left_goes_first(self, tmp_path):
        make(tmp_path, "datasets/content/.{}.removed", "ab" * 16, 1000)
        prune(tmp_path, 1 << 40)
        assert list((tmp_path / "datasets/content").iterdir()) == []

    def test_what_cannot_be_removed_is_told(self, tmp_path, monkeypatch):
        make(tmp_path, LARGE["dataset"], "one", 1000)
        monkeypatch.setattr(Path, "rename", refuse)
        done = prune(tmp_path, 0)
        assert done.num_bytes_left == 100 and done.removed == {}
        assert done.describe(tmp_path, 0).endswith("datasets/content/one (Permission denied)")

    def test_says_what_went(self, tmp_path):
        for k in range(3):
            make(tmp_path, LARGE["dataset"], k, 1000)
        make(tmp_path, LARGE["model"], "one", 2000, size=3 << 20)
        said = prune(tmp_path, 3 << 20).describe(tmp_path, 3 << 20)
        assert said == f"cache {tmp_path}: removed 3 datasets (0.0 MiB), 3.0 MiB left"


def refuse(*arguments):
    raise PermissionError(13, "Permission denied")


class TestHold:
    def test_waits_for_a_removal_and_then_holds_what_is_made_anew(self, tmp_path):
        """The mark that it waited for was removed with the entry: a lock on that would be on nothing."""
        path = make(tmp_path, LARGE["dataset"], "one", 1000)
        script = (
            "import os, sys, signal; from pathlib import Path; from engine.core.files import retention\n"
            f"cache, path = Path({str(tmp_path)!r}), Path({str(path)!r})\n"
            "real = retention.remove\n"
            "def slow(doomed): print(flush=True); sys.stdin.readline(); real(doomed)\n"
            "retention.remove = slow\n"
            "retention.prune(cache, 0)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as pruning:
            pruning.stdout.readline()
            code = holding_script(tmp_path, path, "print(entry.exists(), flush=True); input()")
            with subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as holding:
                pruning.communicate(b"\n", timeout=60)
                assert holding.stdout.readline() == b"False\n"
                make(tmp_path, LARGE["dataset"], "one", 1000)
                prune(tmp_path, 0)
                assert path.exists()
                holding.communicate(b"\n", timeout=60)

    def test_a_read_only_cache_costs_nothing(self, tmp_path, monkeypatch):
        path = make(tmp_path, LARGE["dataset"], "one", 1000)
        monkeypatch.setattr(os, "open", refuse)
        hold(tmp_path, path)
        assert retention._opened == {}

    def test_in_a_read_only_cache_what_is_there_is_locked_all_the_same(self, tmp_path, monkeypatch):
        path, other = (make(tmp_path, LARGE["dataset"], name, 1000) for name in ("one", "two"))
        hold(tmp_path, other)
        os.close(retention._opened.pop(tmp_path / "in_use"))
        real = os.open
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", lambda name, flags, *mode: refuse() if flags & os.O_RDWR else real(name, flags))
            patch.setattr(Path, "touch", refuse)
            hold(tmp_path, path)
        prune(tmp_path, 0)
        assert path.exists() and not other.exists()

    def test_thousands_take_one_descriptor(self, tmp_path):
        before = len(list(Path("/proc/self/fd").iterdir()))
        paths = [make(tmp_path, LARGE["table"], k, 1000, size=1) for k in range(2000)]
        for path in paths:
            hold(tmp_path, path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
        assert prune(tmp_path, 0).num_in_use == 2000


class TestWhatAJobFinds:
    """Whatever a process was given of the cache stays while it lives."""

    def pointed(self, cache, kind, url, content):
        digest = "ab" * 32
        path = make(cache, content, digest, 1000)
        pointer = cache / kind / "url" / f"{hashlib.sha256(url.encode()).hexdigest()}.json"
        pointer.parent.mkdir(parents=True)
        pointer.write_text(json.dumps({"content": digest}))
        return path

    def test_a_dataset_of_a_url(self, tmp_path):
        path = self.pointed(tmp_path, "datasets", "https://a/b", LARGE["dataset"])
        assert fetch_dataset("https://a/b", tmp_path, report=print) == path
        assert prune(tmp_path, 0).num_in_use == 1 and path.exists()

    def test_a_model_of_a_url(self, tmp_path):
        path = self.pointed(tmp_path, "models", "https://a/b", LARGE["model"])
        options = {"suffix": ".safetensors", "check": print, "report": print, "limits": Limits()}
        assert fetch_file("https://a/b", tmp_path, **options) == path
        assert prune(tmp_path, 0).num_in_use == 1 and path.exists()

    def test_the_copy_of_a_parquet_file(self, tmp_path):
        data, cache = tmp_path / "data", tmp_path / "cache"
        data.mkdir()
        images = pa.array([{"bytes": png(0), "path": None}])
        pq.write_table(pa.table({"image": images, "text": ["a"]}), data / "a.parquet")
        wanted = Dataset(name=str(data))
        dataset = open_dataset(wanted, IMAGE, cache_dir=cache, revision=None, report=print)
        assert prune(cache, 0).num_in_use == 1 and len(list((cache / "tables").iterdir())) == 1
        assert dataset.image_bytes(0) == png(0)

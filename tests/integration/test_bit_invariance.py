"""Whatever a machine does otherwise, the same task gives the same bytes: each difference alone, and all at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.harness import assert_same, changed, run_job, succeed
from tests.support.tiny import build_dataset

SITE = '''
"""Lists folders backwards, and lets the wall clock jump by a day at each look, forwards and backwards in turn."""
import os, time

real_scandir, real_listdir, real_time = os.scandir, os.listdir, time.time

class Backwards(list):
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def close(self): pass
    def __iter__(self):
        self._left = list.__iter__(self)
        return self
    def __next__(self): return next(self._left)

if os.environ.get("LIST_BACKWARDS"):
    os.scandir = lambda *a: Backwards(sorted(real_scandir(*a), key=lambda e: e.name, reverse=True)).__iter__()
    os.listdir = lambda *a: sorted(real_listdir(*a), reverse=True)
if os.environ.get("CLOCK_JUMPS"):
    calls = iter(range(1 << 60))
    time.time = lambda: real_time() + 86400 * (-1) ** next(calls)
'''

ENVIRONMENTS = {
    "locale": {"LC_ALL": "POSIX", "LANG": "tr_TR.UTF-8", "LANGUAGE": "tr"},
    "time zone": {"TZ": "Pacific/Chatham"},
    "hash seed": {"PYTHONHASHSEED": "12345"},
    "threads": {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "1",
        "NUMEXPR_NUM_THREADS": "3",
    },
    "listing": {"LIST_BACKWARDS": "1"},
    "clock": {"CLOCK_JUMPS": "1", "SAVE_SECONDS": "0"},
    "no assertions": {"PYTHONOPTIMIZE": "1"},
    "saves": {"SAVE_SECONDS": "0"},
    "no cache": {"MAX_ENCODED_BYTES": "0"},
    "unbuffered": {"PYTHONUNBUFFERED": "1", "PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": "85"},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A dataset whose rows would come in another order if folders were listed otherwise."""
    folder = tmp_path_factory.mktemp("shards") / "images"
    for index, name in enumerate(("b", "a", "\u00e9")):
        build_dataset(folder / name, 3, seed=index, captions="list")
    return folder


@pytest.fixture(scope="module")
def short(task, shards):
    return changed(
        task, {"dataset.name": str(shards), "train_args.num_train_steps": 4, "train_args.max_train_steps": 4}
    )


@pytest.fixture(scope="module")
def usual(short, tmp_path_factory):
    return succeed(short, tmp_path_factory.mktemp("usual") / "out")


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    return {"PYTHONPATH": str(folder)}


def pinned():
    """On one core, and out of the way of others."""
    core = min(os.sched_getaffinity(0))
    return ["taskset", "-c", str(core), "nice", "-n", "3"] if shutil.which("taskset") else []


def test_all_at_once(short, usual, shards, site, tmp_path):
    """Also another home, working folder and umask, an empty cache, a moved dataset, odd characters."""
    everything = {name: value for variables in ENVIRONMENTS.values() for name, value in variables.items()}
    del everything["PYTHONOPTIMIZE"]  # compiles all libraries anew, which takes longer than all else here
    moved = tmp_path / "d \u00e9\u4e2d\U0001f600"
    shutil.copytree(shards, moved)
    elsewhere = tmp_path / "wor king"
    elsewhere.mkdir()
    finished = succeed(
        changed(short, {"dataset.name": str(moved), "dataloader_num_workers": 1}),
        tmp_path / "out\u00e9",
        env={**everything, **site, "HOME": str(tmp_path / "home"), "CACHE_DIR": str(tmp_path / "cache\u00e9")},
        cwd=elsewhere,
        umask=0o277,
        prefix=pinned(),
    )
    assert_same(finished.folders(), usual.folders())


@pytest.mark.slow
def test_other_kernels_share_a_cache_and_mix_no_bits(short, usual, tmp_path):
    """As on another processor: what they encode is not taken by the usual kernels, and their manifest names them."""
    cache = {"CACHE_DIR": str(tmp_path / "cache")}
    chosen = {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    other = succeed(short, tmp_path / "other", env=cache | chosen)
    again = succeed(short, tmp_path / "again", env=cache)
    assert other.manifest["device"] == usual.manifest["device"] | {"environment": chosen}
    assert other.weights() != usual.weights(), "these kernels were expected to give other bits"
    assert_same(again.folders(), usual.folders())


@pytest.mark.slow
@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_each_alone(short, usual, site, tmp_path, what):
    finished = succeed(short, tmp_path / "out", env=ENVIRONMENTS[what] | site)
    assert_same(finished.folders(), usual.folders())


@pytest.mark.slow
def test_on_one_core(short, usual, tmp_path):
    if not pinned():
        pytest.skip("there is no taskset")
    assert_same(succeed(short, tmp_path / "out", prefix=pinned()).folders(), usual.folders())


@pytest.mark.slow
def test_without_a_home(short, usual, tmp_path):
    """Nor a cache: read-only containers have neither."""
    finished = succeed(short, tmp_path / "out", env={"HOME": "/proc/none", "CACHE_DIR": "/proc/none/cache"})
    assert_same(finished.folders(), usual.folders())


def test_names_that_the_terminal_cannot_show(short, tmp_path):
    odd = tmp_path / "\u00e9\u4e2d"
    shutil.copytree(Path(short["dataset"]["name"]), odd)
    plan = run_job(
        changed(short, {"dataset.name": str(odd)}), tmp_path / "out", "--plan", env={"PYTHONIOENCODING": "ascii"}
    )
    assert plan.code == 0, plan.stderr
    assert "\\xe9\\u4e2d: 9 images" in plan.stdout

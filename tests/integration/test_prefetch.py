"""Filling the cache ahead of time: a job then needs no network, and gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import pytest

from tests.support import single_files
from tests.support.fake_hub import COMMIT, serving_hub
from tests.support.harness import ENTRYPOINT, assert_same, changed, run_job, serving, succeed

HUB_ID = "someone/tiny-model"


def prefetch(*flags, env, stdin=None):
    """Run the real program."""
    return subprocess.run(
        [sys.executable, str(ENTRYPOINT), "prefetch", *map(str, flags)],
        cwd=ENTRYPOINT.parent,
        env={"PATH": os.environ["PATH"], "ALLOW_PRIVATE_URLS": "1", **{key: str(value) for key, value in env.items()}},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@pytest.fixture(scope="module")
def archive(dataset):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in sorted(dataset.iterdir()):
            tar.add(path, path.name)
    return buffer.getvalue()


def test_a_job_without_a_network_after_prefetching(short_task, model, archive, tmp_path):
    """In a cache that may hold nothing but what is in use."""
    cache = tmp_path / "cache"
    caches = {"CACHE_DIR": str(cache), "HF_HOME": str(cache / "huggingface"), "MAX_CACHE_BYTES": "1"}
    other = cache / "datasets" / "content" / ("ab" * 32)
    other.mkdir(parents=True)
    (other / "0.png").write_bytes(b"x")
    with serving_hub({HUB_ID: model}) as (hub, downloaded), serving({"/data": archive}) as (server, asked):
        remote = changed(short_task, {"model": {"name": HUB_ID}, "dataset": {"url": f"{server}/data"}})
        online = caches | {"HF_ENDPOINT": hub}
        first = prefetch(env=online | {"TASK_JSON": json.dumps(remote)})
        assert first.returncode == 0, first.stderr
        assert f"{HUB_ID}@{COMMIT}" in first.stderr and "8 images" in first.stderr
        said = first.stderr.splitlines()[-1]
        assert "removed 1 dataset, " in said and said.endswith("2 entries in use") and not other.exists()
        assert asked == ["/data"] and any(name.endswith(".safetensors") for name in downloaded)
        downloaded.clear()
        assert prefetch("--task", "-", env=online, stdin=json.dumps(remote)).returncode == 0
        assert asked == ["/data"] and downloaded == []
    # Both servers are gone: whatever the job still asked for would fail.
    offline = caches | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub}
    trained = succeed(remote, tmp_path / "out", env=offline)
    assert trained.manifest["base_model"] == {"identity": f"{HUB_ID}@{COMMIT}", "revision": COMMIT}
    done = prefetch("--prune", env=caches)
    assert done.returncode == 0 and "1 Hub model" in done.stderr and "1 dataset" in done.stderr
    assert not list((cache / "datasets/content").iterdir()) + list((cache / "huggingface/hub").glob("models--*"))
    local = succeed(short_task, tmp_path / "local")
    # Its metadata name the base model: a Hub ID there, a folder's content here.
    assert_same(*({k: v for k, v in one.weights().items() if "webui" not in k} for one in (trained, local)))


@pytest.mark.parametrize("layout", ["sd1", pytest.param("xl", marks=pytest.mark.slow)])
def test_a_model_in_one_file_with_a_local_dataset(short_task, tmp_path, layout):
    """What is at hand needs nothing, and is said to be at hand."""
    caches = {"CACHE_DIR": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "huggingface")}
    content = single_files.write(tmp_path / "model.safetensors", layout).read_bytes()
    with serving({"/m.safetensors": content}) as (server, asked):
        task = changed(short_task, {"model": {"name": f"{server}/m.safetensors"}})
        for _ in range(2):
            done = prefetch("--task", "-", env=caches, stdin=json.dumps(task))
            assert done.returncode == 0, done.stderr
            assert f"base model: sha256:{hashlib.sha256(content).hexdigest()}" in done.stderr
            assert f"8 images of {short_task['dataset']['name']} are in place" in done.stderr
        assert asked == ["/m.safetensors"]
    # The server is gone.
    assert succeed(task, tmp_path / "out", "--plan", env=caches).code == 0


@pytest.mark.parametrize("bound, code, words", [(None, 2, "needs MAX_CACHE_BYTES"), ("1e9", 2, "MAX_CACHE_BYTES is")])
def test_pruning_needs_a_bound(tmp_path, bound, code, words):
    env = {"CACHE_DIR": tmp_path} | ({} if bound is None else {"MAX_CACHE_BYTES": bound})
    done = prefetch("--prune", env=env)
    assert done.returncode == code and words in done.stderr


def test_what_is_missing_ends_with_the_jobs_code(short_task, tmp_path):
    caches = {"CACHE_DIR": tmp_path / "cache", "HF_HOME": tmp_path / "huggingface"}
    with serving_hub({}) as (hub, _):
        for values, code, words in [
            ({"model": {"name": "someone/nothing"}}, 4, "someone/nothing"),
            ({"dataset": {"url": f"{hub}/gone"}}, 3, "404"),
            ({"lora": {"rank": 0}}, 2, "lora.rank"),
        ]:
            text = json.dumps(changed(short_task, values))
            done = prefetch("--task", "-", env=caches | {"HF_ENDPOINT": hub}, stdin=text)
            assert done.returncode == code and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
            assert words in done.stderr


def test_offline_without_prefetching_says_so(short_task, tmp_path):
    remote = changed(short_task, {"model": {"name": HUB_ID}})
    refused = run_job(remote, tmp_path / "out", "--plan", env={"HF_HOME": str(tmp_path)})
    assert refused.code == 4 and "HF_HUB_OFFLINE" in refused.error

"""Shards on a server, more than the cache may hold: the bytes of a training on a folder of the same tars."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
from tests.support.harness import assert_same, changed, run_chain, run_job, start_job, succeed
from tests.support.shard_server import serving_shards
from tests.support.shards import shard, written

STEPS = 6
BOUND = 45_000
"""Bytes that the cache may hold: less than the shards have together."""


@pytest.fixture(scope="module")
def files():
    found = {f"t-{n:03}.tar": shard(4 * n, 4, side=70, noise=True, masks=True) for n in range(5)}
    assert sum(map(len, found.values())) > 3 * BOUND
    return found


@pytest.fixture(scope="module")
def task(task):
    return changed(
        task,
        {
            "train_args.num_train_steps": STEPS,
            "train_args.max_train_steps": STEPS,
            "validation.num_inference_steps": 2,
            "dataset.image_column": "png",
            "dataset.repeats": 2,
        },
    )


@pytest.fixture
def server(files):
    with serving_shards(files) as running:
        running.files["list.txt"] = "\n".join(files).encode()
        yield running


def files_of(finished):
    """Return all files of a result but those that hold the task, which names another dataset."""
    naming = {f"checkpoint/{name}" for name in ("README.md", "manifest.json", "state.json")}
    return {name: data for name, data in finished.folders().items() if name not in naming}


def environment(cache, **more):
    return {"ALLOW_PRIVATE_URLS": "1", "CACHE_DIR": str(cache), "MAX_CACHE_BYTES": str(BOUND), **more}


def remote(task, server):
    return changed(task, {"dataset.name": None, "dataset.url": server.url("list.txt")})


def test_the_plan_and_the_job_of_shards_that_the_cache_cannot_hold(task, server, files, tmp_path):
    wanted = Dataset(name=str(written(tmp_path / "folder", files)), image_column="png", repeats=2)
    local = open_dataset(wanted, IMAGE, cache_dir=tmp_path / "c", revision=None, report=lambda line: None)
    own = changed(remote(task, server), {"train_args.num_train_steps": 2, "train_args.max_train_steps": 2})
    env = environment(tmp_path / "cache")
    plan = succeed(own, tmp_path / "out", "--plan", env=env)
    assert "20 images" in plan.stdout
    assert "dataset: 5 shards of " in plan.stderr
    assert len(server.whole()) == 6
    finished = succeed(own, tmp_path / "out", env=env)
    assert finished.manifest["dataset"]["fingerprint"] == local.fingerprint
    assert len(server.whole()) == 6
    assert server.parts()
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar")) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_a_chain_with_any_cache_server_and_number_of_processes_is_one_run_of_a_folder(
    task, server, files, tmp_path, masked
):
    if masked:
        task = changed(task, {"dataset.mask_column": "mask.png"})
    local = changed(task, {"dataset.name": str(written(tmp_path / "folder", files))})
    whole = succeed(local, tmp_path / "whole", env={"CACHE_DIR": str(tmp_path / "other")})

    def each(index):
        server.ranges = index != 1
        more = {"PROCESSES": "2"} if index else {}
        return environment(tmp_path / f"cache-{index % 2}", **more)

    chain = run_chain(
        remote(task, server),
        tmp_path,
        (1, 3, 2),
        each=each,
        changes=lambda index: {"dataloader_num_workers": index % 2},
    )
    assert_same(chain[-1].weights(), whole.weights())
    assert chain[-1].manifest["dataset"] == whole.manifest["dataset"]
    alone = succeed(remote(task, server), tmp_path / "alone", env=environment(tmp_path / "cache-0"))
    assert_same(files_of(alone), files_of(whole))


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
def test_killed_at_any_request_it_goes_on(task, server, files, tmp_path, ranges):
    server.ranges = ranges
    whole = succeed(
        changed(task, {"dataset.name": str(written(tmp_path / "folder", files))}), tmp_path / "whole", env={}
    )
    env = environment(tmp_path / "cache", SAVE_SECONDS="0")
    for count in (2, 4, 7, 12):
        job = start_job(remote(task, server), tmp_path / "out", env=env)
        server.requests.clear()
        job.until(lambda: len(server.requests) >= count or job.process.poll() is not None, "requests")  # noqa: B023
        job.process.kill()
        job.process.wait()
    finished = succeed(remote(task, server), tmp_path / "out", env=env)
    assert_same(files_of(finished), files_of(whole))
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.suffix in (".tar", ".part")]
    assert sum(sizes) <= BOUND


@pytest.mark.slow
def test_a_signal_while_a_server_stalls_ends_the_job(task, server, tmp_path):
    opens = threading.Event()
    server.answer = lambda handler: "bytes=0-" not in handler.headers.get("Range", "bytes=0-") and not opens.wait(60)
    job = start_job(remote(task, server), tmp_path / "out", env=environment(tmp_path / "cache", MAX_CACHE_BYTES="0"))
    job.until(lambda: len(server.parts()) > 3, "parts")
    begun = time.monotonic()
    job.signal(signal.SIGTERM)
    assert job.finish().code == 143
    assert time.monotonic() - begun < 15
    opens.set()


@pytest.mark.slow
def test_another_content_in_the_middle_ends_with_code_3(task, server, files, tmp_path):
    job = start_job(remote(task, server), tmp_path / "out", env=environment(tmp_path / "cache", SAVE_SECONDS="0"))
    job.until(lambda: len(server.whole()) >= 6, "all shards")
    server.files |= {name: shard(100, 4, side=70, noise=True) for name in files}
    finished = job.finish()
    assert finished.code == 3, finished.stderr
    assert "has changed on its server" in finished.error
    assert run_job(remote(task, server), tmp_path / "out", env=environment(tmp_path / "cache")).code == 3

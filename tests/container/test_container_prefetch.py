"""A cache that is filled ahead of time, then a job without any network."""

import io
import json
import zipfile

import pytest

from tests.container.conftest import TASK
from tests.support.containers import CALLER, ROOT, give, owners, run, succeed
from tests.support.fake_hub import COMMIT, serving_hub
from tests.support.harness import serving

pytestmark = pytest.mark.container

MODEL = "someone/base-emoji"


def zipped(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return buffer.getvalue()


def test_a_job_without_a_network(tmp_path, out, made_by_docker):
    images = zipped(ROOT / "assets/datasets/emoji-high-contrast")
    cache = tmp_path / "cache"
    with serving_hub({MODEL: ROOT / "assets/base-emoji"}) as (hub, _), serving({"/data": images}) as (server, _):
        task = TASK | {"model": {"name": MODEL}, "dataset": {"url": f"{server}/data"}}
        folder = tmp_path / "task"
        folder.mkdir()
        (folder / "task.json").write_text(json.dumps(task))
        give(folder, CALLER)
        online = ["-e", "ALLOW_PRIVATE_URLS=1", "-e", f"HF_ENDPOINT={hub}", "-v", f"{cache}:/cache"]
        prefetch = ("prefetch", "--task", "/task/task.json")
        filled = succeed(out, *prefetch, task=folder, options=online, network="host")
    count = len(list((ROOT / "assets/datasets/emoji-high-contrast").glob("*.png")))
    assert f" {count} images" in filled.stderr and f"{MODEL}@{COMMIT}" in filled.stderr
    assert owners(cache) == {CALLER}

    offline = ["-e", "HF_HUB_OFFLINE=1", "-v", f"{cache}:/cache:ro", "--read-only"]
    trained = succeed(out, task=folder, options=offline)
    assert "/cache is read-only: its entries are used" in trained.stderr
    # Its metadata name the base model: a Hub ID here, a folder's content there.
    ours, other = (
        {name: data for name, data in one.weights().items() if "webui" not in name} for one in (trained, made_by_docker)
    )
    assert ours == other

    # The same without the cache: nothing is found, and nothing hangs.
    (tmp_path / "other").mkdir()
    refused = run(tmp_path / "other", "--plan", task=folder, options=["-e", "HF_HUB_OFFLINE=1"])
    assert refused.code == 4 and "not in the cache" in refused.stderr

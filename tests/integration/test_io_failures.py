"""Machines that fail: struck at any change while downloading, a disk that is really full, a permission that goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.integration.hostile.archives import FILES, tar_of, zip_of
from tests.integration.hostile.case import Server
from tests.support.forks import fork_server
from tests.support.harness import SOON, assert_same, changed, folder_bytes, start_job, succeed

OPEN = {"ALLOW_PRIVATE_URLS": "1"}
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, and become somebody else")


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("light"), heavy=False) as started:
        yield started


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("heavy"), heavy=True) as started:
        yield started


@pytest.fixture
def web():
    server = Server()
    yield server
    server.close()


BODIES = {"zip": zip_of(FILES), "tar": tar_of()}
CODES = {"kill": -9, "power": -9, "SIGTERM": 143, "ENOSPC": 7, "EACCES": 7, "EROFS": 7}


def contents(cache):
    """What was unpacked."""
    return folder_bytes(cache / "datasets" / "content")


def download_strikes(light, web, task, tmp_path, body, strikes, every):
    """How often a download was struck; each time the same command then finds the same dataset."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    remote = changed(task, {"dataset": {"url": web.url(body)}})

    def plan(**orders):
        env = {**OPEN, "CACHE_DIR": str(cache)}
        return light.run(remote, out, "--plan", env=env, allowed=[str(cache)], watched=str(cache), **orders)

    undisturbed = plan()
    assert undisturbed.code == 0, undisturbed.stderr
    expected = contents(cache)
    count = 0
    for how in strikes:
        for at in range(1, len(undisturbed.changes) + 1, every):
            shutil.rmtree(cache)
            what = f"{how} before change {at}, {undisturbed.changes[at - 1]}"
            struck = plan(at=at, strike=how, forever=how.startswith("E"))
            assert struck.code in (CODES[how], 0), f"{what}: {struck.stderr}"
            again = plan()
            assert again.code == 0, f"{what}: {again.stderr}"
            assert lasting(again.stdout) == lasting(undisturbed.stdout), what
            assert_same(contents(cache), expected)
            assert not list(cache.rglob("*.part")) and not list(cache.rglob("*.building")), what
            count += 1
    return count


def lasting(plan: str) -> list[str]:
    """A plan's lines, but for what of the machine's memory is free just now."""
    return [line for line in plan.splitlines() if not line.startswith("memory ")]


def test_struck_in_a_download(light, web, short_task, tmp_path):
    assert download_strikes(light, web, short_task, tmp_path, BODIES["zip"], ["kill", "ENOSPC"], 6) >= 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", BODIES)
def test_struck_before_every_change_of_a_download(light, web, short_task, tmp_path, kind):
    assert download_strikes(light, web, short_task, tmp_path, BODIES[kind], CODES, 1) >= 60


@pytest.mark.slow
def test_stopped_while_a_server_stalls(web, short_task, tmp_path):
    """At once, not when the server has had its say."""
    asked = threading.Event()

    def stall(handler):
        asked.set()
        time.sleep(60)

    remote = changed(short_task, {"dataset": {"url": web.url(stall)}})
    job = start_job(remote, tmp_path / "out", env=OPEN)
    job.until(asked.is_set, "its request")
    job.signal(15)
    sent = time.monotonic()
    finished = job.finish()
    assert finished.code == 143 and time.monotonic() - sent < SOON
    assert finished.result["status"] == "interrupted"


@pytest.mark.slow
def test_stopped_twice(short_task, tmp_path):
    """Whoever repeats it does not wait for a step; nothing is lost by that."""
    expected = succeed(short_task, tmp_path / "expected")
    long = changed(short_task, {"train_args.num_train_steps": 2000, "train_args.max_train_steps": 2000})
    job = start_job(long, tmp_path / "out", env={"SAVE_SECONDS": "0"})
    job.until_step(1)
    for _ in range(3):
        job.signal(15)
    assert job.finish().code == 143
    again = succeed(short_task, tmp_path / "out", "--overwrite")
    assert_same(again.folders(), expected.folders())


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of that size."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@as_root
@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 64, 160, 320])
def test_a_full_disk(heavy, short_task, tmp_path, kilobytes):
    """Code 7 with advice, before anything is trained; with space the same command ends well, with the same bytes."""
    expected = heavy.run(short_task, tmp_path / "expected").folders()
    disk = tmp_path / "disk"
    with small_disk(disk, f"{kilobytes}k"):
        full = heavy.run(short_task, disk / "out", env={"SAVE_SECONDS": "0"})
        assert full.code == 7, full.stderr
        assert "the disk is full" in full.error or "not enough disk space in" in full.error
        assert not (disk / "out" / ".job" / "progress").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        again = heavy.run(short_task, disk / "out")
        assert again.code == 0, again.stderr
        assert_same(again.folders(), expected)


def let_read(*folders: Path) -> None:
    """Open these folders, and those above, to every user; of weights and images the files, too."""
    for folder in folders:
        for part in (folder, *folder.parents):
            if not part.stat().st_mode & 0o001:
                part.chmod(part.stat().st_mode | 0o011)
        for file in (*folder.rglob("*.safetensors"), *folder.rglob("*.png")):
            file.chmod(file.stat().st_mode | 0o044)


@as_root
@pytest.mark.slow
def test_a_permission_that_goes(heavy, short_task, tmp_path):
    """In mid-run, for a user that it stops; given back, the same command goes on."""
    if any(not folder.stat().st_mode & 0o001 for folder in Path(os.__file__).parents):
        pytest.skip("another user cannot read this Python")
    long = changed(short_task, {"train_args.num_train_steps": 30, "train_args.max_train_steps": 30})
    expected = heavy.run(long, tmp_path / "expected").folders()
    out, cache = tmp_path / "out", tmp_path / "cache"
    for folder in (out, cache):
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
    # The task lies beside the fork server's cache.
    let_read(heavy.cache.parent, tmp_path, Path(long["model"]["name"]), Path(long["dataset"]["name"]))

    def take_away():
        deadline = time.monotonic() + 60
        while not (out / ".job" / "progress").exists():
            if time.monotonic() > deadline:
                return
            time.sleep(0.002)
        (out / ".job").chmod(0o555)
        out.chmod(0o555)

    thread = threading.Thread(target=take_away, daemon=True)
    thread.start()
    env = {"SAVE_SECONDS": "0", "CACHE_DIR": str(cache)}
    stopped = heavy.run(long, out, user=NOBODY, env=env, save_always=True)
    assert stopped.code == 7, stopped.stderr
    assert "permission denied" in stopped.error
    thread.join()
    for folder in (out, out / ".job"):
        folder.chmod(0o755)
    again = heavy.run(long, out, user=NOBODY, env=env)
    assert again.code == 0, again.stderr
    assert again.result["resumed_from_step"] > 0
    assert_same(again.folders(), expected)

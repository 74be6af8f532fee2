"""A corpus of hostile input, each tried on the program: the code, one line, nothing elsewhere, bounded time and memory.

The tables are in `hostile/`. A few cases of each stand for their kind in the default run.
"""

from __future__ import annotations

import json
import stat

import pytest

from tests.integration.hostile import (
    archives,
    arrows,
    captions,
    checkpoints,
    crafted,
    images,
    impostors,
    lists,
    models,
    servers,
    tables,
    tasks,
    videos,
)
from tests.integration.hostile.case import Case, Place, Server
from tests.support.forks import Forked, fork_server
from tests.support.harness import changed, succeed
from tests.support.tiny import SMALL_PNG
from tests.support.tiny_ltx import build_ltx

TABLES = {
    "task": tasks.CASES,
    "archive": archives.CASES,
    "crafted archive": crafted.CASES,
    "server": servers.CASES,
    "list": lists.CASES,
    "table": tables.CASES,
    "typed table": arrows.CASES,
    "caption": captions.CASES,
    "image": images.CASES,
    "video": videos.CASES,
    "model": models.CASES,
    "checkpoint": checkpoints.CASES,
    "impostor of a checkpoint": impostors.CASES,
}
CASES = {f"{table}: {name}": case for table, cases in TABLES.items() for name, case in cases.items()}
KINDS = {
    2: "task",
    3: "dataset",
    4: "model",
    5: "checkpoint",
    6: "memory",
    7: "output",
    8: "non-finite",
    75: "temporary",
}


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("light"), heavy=False) as started:
        yield started


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("heavy"), heavy=True) as started:
        yield started


@pytest.fixture(scope="module")
def parent(short_task, tmp_path_factory):
    """A checkpoint after the first of two steps."""
    one = changed(short_task, {"train_args.num_train_steps": 1})
    return succeed(one, tmp_path_factory.mktemp("parent") / "out").out / "checkpoint"


@pytest.fixture(scope="module")
def video_model(tmp_path_factory):
    return build_ltx(tmp_path_factory.mktemp("video") / "model")


@pytest.fixture
def place(tmp_path, model, dataset, request):
    server = Server()
    (tmp_path / "inputs").mkdir()
    (tmp_path / "secret.png").write_bytes(SMALL_PNG)
    checkpoint = request.getfixturevalue("parent") if "checkpoint" in request.node.name else tmp_path
    video_model = request.getfixturevalue("video_model") if "[video: " in request.node.name else tmp_path
    yield Place(
        root=tmp_path, server=server, model=model, images=dataset, checkpoint=checkpoint, video_model=video_model
    )
    server.close()


def run(case: Case, place: Place, task, server) -> Forked:
    """The program on the case, in a folder whose other contents must stay as they are."""
    changes = dict(case.make(place))
    flags, raw = changes.pop("flags", []), changes.pop("raw", None)
    wanted = changed(task, changes)
    cache, out = place.root / "cache", place.root / "out"
    before = surroundings(place)
    finished = server.run(
        raw(json.dumps(wanted).encode()) if raw else wanted,
        out,
        *([] if case.train else ["--plan"]),
        *flags,
        env={"CACHE_DIR": str(cache), "HOME": str(place.root), "TMPDIR": str(place.root), **case.variables},
        cwd=place.root,
        seconds=case.seconds,
        allowed=[str(cache), *([str(out)] if case.train else [])],
    )
    assert surroundings(place) == before
    return finished


def surroundings(place: Place):
    """All names with times, modes and sizes but for the job's own two folders; links are not followed."""
    found = {}
    for path in place.root.rglob("*"):
        name, status = path.relative_to(place.root), path.lstat()
        if name.parts[0] not in ("cache", "out"):
            found[str(name)] = (status.st_mtime_ns, status.st_ino, status.st_mode, status.st_size)
    return found


def check(case: Case, place: Place, finished: Forked, own_memory: int) -> None:
    assert not finished.timed_out, finished.stderr
    assert finished.code == case.code or (case.code == -1 and finished.code in (0, 3, 5)), finished.stderr
    said = finished.error if finished.code else finished.stdout + finished.stderr
    assert [word for word in case.words if word not in said] == [], said
    assert finished.misdeeds == []
    assert case.connects or finished.connections == []
    assert finished.peak_bytes - own_memory <= case.memory
    for path in place.root.rglob("*"):
        mode = path.lstat().st_mode
        is_ours = path.relative_to(place.root).parts[0] in ("cache", "out")
        if is_ours and not stat.S_ISDIR(mode):
            assert stat.S_ISREG(mode) and not mode & 0o6111, path
    if finished.code and case.train:
        result = finished.result
        assert (result["code"], result["kind"], result["message"]) == (
            finished.code,
            KINDS[finished.code],
            finished.error,
        )
        assert not (finished.out / "checkpoint").exists()


def _cases(wanted):
    return [
        pytest.param(case, id=name, marks=() if case.quick else pytest.mark.slow)
        for name, case in CASES.items()
        if wanted(case)
    ]


@pytest.fixture(scope="module")
def own_memory(light, heavy, short_task, tmp_path_factory):
    """What the program uses for an input that does no harm."""
    out = tmp_path_factory.mktemp("harmless") / "out"
    planned = light.run(short_task, out, "--plan")
    trained = heavy.run(short_task, out, allowed=[str(out), str(heavy.cache)])
    assert planned.code == trained.code == 0, trained.stderr
    return {False: planned.peak_bytes, True: trained.peak_bytes}


@pytest.mark.parametrize("case", _cases(lambda case: case.seconds < 200))
def test_hostile_input(case, place, short_task, light, heavy, own_memory):
    finished = run(case, place, short_task, heavy if case.train else light)
    check(case, place, finished, own_memory[case.train])

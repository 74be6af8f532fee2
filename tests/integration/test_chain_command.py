"""`entrypoint.py chain` with the real job in children forked from one process."""

from __future__ import annotations

from tests.support.harness import Finished, assert_same, changed, succeed


def test_each_result_has_the_bytes_of_a_job_of_its_own(short_task, tmp_path):
    task = changed(short_task, {"train_args.num_train_steps": 1})
    succeed(task, None, "chain", "--output", tmp_path / "out")
    first = succeed(task, tmp_path / "first")
    second = succeed(task, tmp_path / "second", "--checkpoint", first.out / "checkpoint")
    tasks = [Finished(code=0, stdout="", stderr="", out=tmp_path / "out" / name) for name in ("000", "001")]
    for found, expected in zip(tasks, (first, second), strict=True):
        assert_same(found.folders(), expected.folders())
        assert found.result["seconds"]["start"] < 3  # nothing was imported, which takes 5 s
    assert tasks[0].result["ended"] <= tasks[1].result["started"]

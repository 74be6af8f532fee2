"""The chain's earlier tasks, from the report beside the parent's checkpoint; every setting with what it means."""

from dataclasses import replace

import pytest

from engine.job.results.report_parts import earlier_tasks, settings_of, smaller, still_of
from engine.results.checkpoint import Checkpoint
from engine.results.report import render
from engine.results.report.earlier import Earlier
from engine.task.task import Task
from tests.support.jobs import FLOW_SPEC, job_of, text
from tests.support.reports import png, sample

DIGEST = "ef" * 32


def parent(digest=DIGEST):
    values = dict.fromkeys(Checkpoint.__dataclass_fields__)
    return Checkpoint(**(values | {"digest": digest, "global_step": 60}))


def found(tmp_path, digest=DIGEST):
    return earlier_tasks(replace(job_of(), parent=parent(digest), parent_folder=tmp_path / "checkpoint"))


def test_the_report_beside_the_checkpoint(tmp_path):
    assert found(tmp_path) == Earlier()
    (tmp_path / "report.html").write_text(render(sample()), encoding="utf-8")
    assert found(tmp_path) == Earlier({}, [None, 10.75], is_known=True)
    assert found(tmp_path, "99" * 32) == Earlier()


def test_a_link_or_no_text(tmp_path):
    (tmp_path / "elsewhere.html").write_text(render(sample()), encoding="utf-8")
    (tmp_path / "report.html").symlink_to(tmp_path / "elsewhere.html")
    assert found(tmp_path) == Earlier()
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").write_bytes(b"\xff\xfe<main data-record=")
    assert found(tmp_path) == Earlier()


def test_a_first_task_has_none():
    assert earlier_tasks(job_of()) == Earlier()


def test_a_damaged_image_is_none():
    assert smaller(b"\x89PNG\r\n\x1a\n" + bytes(20), 192) == b""
    assert smaller(png(8), 192) == png(8)


@pytest.mark.parametrize("family, guidance", [({}, 7.5), ({"family": FLOW_SPEC}, 3.5)])
def test_every_key_with_what_null_means(family, guidance):
    job = job_of(text(seed=9), **family)
    every = {row.name: row for row in settings_of(job)}
    assert {name.partition(".")[0] for name in every} == set(Task.__dataclass_fields__)
    assert every["seed"].value == 9 and not every["seed"].is_default
    drawn = every["validation.guidance_scale"]
    assert (drawn.value, drawn.is_default, drawn.effect) == (None, True, guidance)
    assert every["train_args.max_train_steps"].effect == job.step_range.max_steps


def test_a_clip_that_cannot_be_decoded_has_no_still():
    assert still_of("0.mp4", b"no clip") == b"" and still_of("0.png", b"any") == b"any"

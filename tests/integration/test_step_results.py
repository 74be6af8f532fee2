"""Images and LoRAs of steps before a task's end: what Diffusers draws, whole through kills, without a trace."""

from __future__ import annotations

import json
import re
import signal
import time

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.support.harness import (
    SOON,
    STOPPED,
    assert_same,
    changed,
    folder_bytes,
    progress,
    read_json,
    run_job,
    start_job,
    succeed,
)
from tests.support.pipelines import in_own_memory

STEPS = 9
SAVES = {"SAVE_SECONDS": "0"}
INTERIM = {"validation.every_n_steps": 3, "checkpoint_every_n_steps": 3, "checkpoint_limit": 2}
DRAWING = {
    "num_images": 2,
    "prompts": ["a red square", {"prompt": "an old map", "width": 96, "guidance_scale": 3}],
    "num_inference_steps": 2,
}


@pytest.fixture(scope="module")
def plain(task):
    sizes = {"batch_size": 1, "gradient_accumulation_steps": 1, "num_train_steps": STEPS, "max_train_steps": STEPS}
    strong = {"learning_rate": 2e-2, "lr_scheduler": {"lr_scheduler": "constant"}, "train_text_encoder": True}
    changes = {f"train_args.{key}": value for key, value in {**sizes, **strong}.items()}
    return changed(task, {**changes, "lora.dropout": 0.1, "validation": DRAWING})


@pytest.fixture(scope="module")
def own(plain):
    return changed(plain, INTERIM)


@pytest.fixture(scope="module")
def run(server):
    """Run a task that must end well, saving its progress after each step."""

    def run(task, out, *flags, **orders):
        finished = server.run(task, out, *flags, env=SAVES, save_always=True, **orders)
        assert finished.code == 0, finished.stderr
        return finished

    return run


@pytest.fixture(scope="module")
def whole(run, own, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    return run(own, out, watched=str(out))


def steps_of(finished):
    return folder_bytes(finished.out / "checkpoint" / "steps")


def images_between(finished):
    found = folder_bytes(finished.out / "validation")
    return {name: data for name, data in found.items() if name.startswith("step-")}


def test_what_is_there(whole):
    assert sorted(steps_of(whole)) == [
        f"{step}{suffix}.safetensors" for step in ("000003", "000006") for suffix in ("", "_webui")
    ]
    assert sorted(images_between(whole)) == [f"step-00000{step}/{k}.png" for step in (3, 6) for k in (0, 1)]
    assert [row["file"] for row in read_json(whole.out / "validation" / "prompts.json")] == ["0.png", "1.png"]
    assert {f"steps/{name}" for name in steps_of(whole)} < set(whole.manifest["files"])
    events = [(line["event"], line["step"]) for line in progress(whole.out)]
    assert [event for event in events if event[0] in ("lora", "images")] == [
        ("lora", 3),
        ("images", 3),
        ("lora", 6),
        ("images", 6),
    ]
    assert (whole.out / "report.html").read_text().count('alt="Validation image 2 after step') == 2


def test_no_trace_in_the_training(run, plain, whole, tmp_path):
    """Its weights, moments and history, and the images after its last step."""
    without = run(plain, tmp_path / "out")
    found = without.folders()
    for name in ("manifest.json", "state.json", "README.md"):  # they name the task and its settings
        del found[f"checkpoint/{name}"]
    expected = whole.folders()
    assert_same(found, {name: expected[name] for name in found})


def test_a_chain_keeps_what_one_task_would(run, own, whole, tmp_path):
    """Cut at a step whose LoRA is kept, and at one between two."""
    first = run(changed(own, {"train_args.num_train_steps": 3}), tmp_path / "first")
    assert not (first.out / "checkpoint" / "steps").exists() and images_between(first) == {}
    second = changed(own, {"train_args.num_train_steps": 4})
    second = run(second, tmp_path / "second", "--checkpoint", first.out / "checkpoint")
    assert {name[:6] for name in steps_of(second)} == {"000003", "000006"}
    last = run(own, tmp_path / "last", "--checkpoint", second.out / "checkpoint")
    assert_same(steps_of(last), steps_of(whole))
    assert_same(last.weights(), whole.weights())
    assert_same(images_between(second), {n: d for n, d in images_between(whole).items() if "000006" in n})
    shown = re.findall('alt="Validation image 1 after step ([0-9]+)"', (last.out / "report.html").read_text())
    assert shown == ["3", "6", "7"], "those of the earlier tasks, too"
    none = run(
        changed(own, {"checkpoint_every_n_steps": None}), tmp_path / "none", "--checkpoint", second.out / "checkpoint"
    )
    assert not (none.out / "checkpoint" / "steps").exists()
    assert_same(folder_bytes(none.out / "validation"), folder_bytes(last.out / "validation"))


@pytest.mark.parametrize("suffix", ["", "_webui"])
@pytest.mark.usefixtures("one_thread")
def test_an_image_in_between_is_what_diffusers_draws_by_the_lora_of_that_step(whole, model, suffix):
    pipe = DiffusionPipeline.from_pretrained(model)
    in_own_memory(pipe)
    pipe.load_lora_weights(str(whole.out / "checkpoint" / "steps"), weight_name=f"000006{suffix}.safetensors")
    row = read_json(whole.out / "validation" / "prompts.json")[1]
    generator = torch.Generator("cpu").manual_seed(row["seed"])
    options = {key: row[key] for key in ("prompt", "width", "height", "num_inference_steps", "guidance_scale")}
    assert options == {**DRAWING["prompts"][1], "height": 64, "num_inference_steps": 2}
    drawn = pipe(**options, generator=generator).images[0]
    with Image.open(whole.out / "validation" / "step-000006" / "1.png") as kept:
        assert np.array_equal(np.asarray(drawn), np.asarray(kept))
    with Image.open(whole.out / "validation" / "1.png") as last:
        assert not np.array_equal(np.asarray(drawn), np.asarray(last))


def is_kept(change):
    return "/.job/kept" in change


STRIKES = ("power", "ENOSPC", "kill", "SIGTERM")


@pytest.mark.parametrize(
    "how, count",
    [*((how, 2) for how in STRIKES[:2]), *(pytest.param(how, 3, marks=pytest.mark.slow) for how in STRIKES)],
)
def test_struck_where_something_is_kept(run, server, own, whole, tmp_path, how, count):
    """At a few of the changes below `.job/kept`, each way of striking at others."""
    points = [at for at, change in enumerate(whole.changes, start=1) if is_kept(change)]
    assert len(points) >= 20
    codes = {"kill": (-9,), "power": (-9,), "SIGTERM": (143,), "ENOSPC": (7,)}[how]
    for at in points[STRIKES.index(how) :: max(4, len(points) // count)]:
        out = tmp_path / f"{at}"
        struck = server.run(own, out, env=SAVES, save_always=True, watched=str(out), at=at, strike=how)
        # The report is renewed by the clock: this number may be another change, where a full disk ends nothing, or none
        was_kept = any(map(is_kept, struck.changes[at - 1 : at]))
        assert struck.code in codes or not was_kept, (whole.changes[at - 1], struck.stderr)
        again = run(own, out)
        assert_same(again.folders(), whole.folders())
        assert not (out / ".job").exists()


def test_the_space_of_a_killed_save_is_free_before_the_next(server, run, own, whole, tmp_path):
    """Else a disk with room for two states, the saved and the next, would hold three."""
    stored = [at for at, change in enumerate(whole.changes, start=1) if is_kept(change) and "rename" in change]
    out = tmp_path / "out"
    struck = server.run(own, out, env=SAVES, save_always=True, watched=str(out), at=stored[1] + 1, strike="kill")
    assert struck.code == -9
    names = {path.name for path in (out / ".job" / "kept").iterdir()}
    header = json.loads((out / ".job" / "progress").read_bytes()[32:].partition(b"\n")[0])
    (lost,) = names - set(header["state_files"].values())
    again = run(own, out, watched=str(out))
    first = next(change for change in again.changes if is_kept(change))
    assert "remove" in first and first.endswith(lost)
    assert_same(again.folders(), whole.folders())


def stopped_while_drawing(task, out, **env):
    """SIGTERM in the midst of the first images in between; the LoRA of that step is kept before."""
    job = start_job(task, out, env={"SAVE_SECONDS": "1000", **env})
    job.until(lambda: any(line["event"] == "lora" for line in progress(out)), "the first LoRA")
    started = time.monotonic()
    job.signal(signal.SIGTERM)
    finished = job.finish()
    assert finished.code == STOPPED[signal.SIGTERM], finished.stderr
    assert time.monotonic() - started < SOON
    assert finished.result["global_step"] == 3
    return finished


def test_stopped_while_drawing(own, run, tmp_path):
    """Soon, at the step whose images are drawn; the same command draws them."""
    once = {"validation.num_images": 1, "validation.prompts": None, "train_args.num_train_steps": 4}
    slow = changed(own, {**once, "validation.num_inference_steps": 100})
    expected = run(slow, tmp_path / "undisturbed")
    out = tmp_path / "out"
    stopped_while_drawing(slow, out)
    (progress_file,) = out.glob(".job/progress")
    header = json.loads(progress_file.read_bytes()[32:].partition(b"\n")[0])
    assert sorted(header["kept"]) == [
        "checkpoint/steps/000003.safetensors",
        "checkpoint/steps/000003_webui.safetensors",
    ]
    again = run(slow, out)
    assert again.result["resumed_from_step"] == 3
    assert_same(again.folders(), expected.folders())


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_file_in_between_makes_the_progress_unusable(own, server, run, whole, tmp_path, damage):
    last = max(at for at, change in enumerate(whole.changes, start=1) if is_kept(change) and "fsync" in change)
    out = tmp_path / "out"
    assert server.run(own, out, env=SAVES, save_always=True, watched=str(out), at=last, strike="kill").code == -9
    kept = sorted((out / ".job" / "kept").iterdir())
    hashes = json.loads((out / ".job" / "progress").read_bytes()[32:].partition(b"\n")[0])["kept"].values()
    (victim, *_) = [path for path in kept if path.name in hashes]
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    again = run(own, out)
    assert again.result["resumed_from_step"] == 0
    assert "is missing or damaged: this task starts over" in again.stderr
    assert_same(again.folders(), whole.folders())


def test_a_changed_lora_of_an_earlier_step_is_refused(run, own, whole, server, tmp_path):
    first = run(changed(own, {"train_args.num_train_steps": 5}), tmp_path / "first")
    path = first.out / "checkpoint" / "steps" / "000003.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    refused = server.run(own, tmp_path / "out", "--checkpoint", first.out / "checkpoint")
    assert refused.code == 5 and "steps/000003.safetensors is corrupt" in refused.error


@pytest.mark.slow
def test_several_processes(own, plain, tmp_path):
    """The first one draws while the other waits; stopped while it does, the job goes on in one process alone."""
    shared = {"train_args.gradient_accumulation_steps": 2, "train_args.batch_size": 1}
    own = changed(own, {**shared, "validation.num_inference_steps": 60})
    expected = succeed(own, tmp_path / "one")
    two = succeed(own, tmp_path / "two", env={"PROCESSES": "2"})
    assert "starting 2 processes" in two.stderr
    assert_same(two.folders(), expected.folders())
    stopped_while_drawing(own, tmp_path / "out", PROCESSES="2")
    again = succeed(own, tmp_path / "out")
    assert again.result["resumed_from_step"] == 3
    assert_same(again.folders(), expected.folders())


@pytest.mark.slow
def test_sdxl_in_bf16(own, xl_model, tmp_path):
    xl = changed(own, {"model.name": str(xl_model), "mixed_precision": "bf16"})
    expected = succeed(xl, tmp_path / "undisturbed")
    plain = changed(xl, {"validation.every_n_steps": None, "checkpoint_every_n_steps": None, "checkpoint_limit": 5})
    plain = succeed(plain, tmp_path / "plain").weights()
    assert_same(plain, {name: data for name, data in expected.weights().items() if name in plain})
    job = start_job(xl, tmp_path / "out", env=SAVES)
    job.until(lambda: any(line["event"] == "images" for line in progress(job.out)), "the first images")
    job.signal(signal.SIGKILL)
    job.process.wait()
    assert_same(succeed(xl, tmp_path / "out", env=SAVES).folders(), expected.folders())


def test_refused(own, tmp_path):
    wrong = changed(own, {"checkpoint_every_n_steps": 0, "checkpoint_limit": 0, "validation.prompt": "a"})
    finished = run_job(wrong, tmp_path / "out")
    assert finished.code == 2 and "3 problems" in finished.error

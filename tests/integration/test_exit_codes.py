"""Each exit code of the contract that a CPU can show, with one line that says why and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.harness import (
    ENTRYPOINT,
    PATIENCE,
    assert_same,
    changed,
    folder_bytes,
    read_json,
    run_job,
    serving,
    snapshot,
    start_job,
    succeed,
    together,
)
from tests.support.tiny import build_dataset, build_sd

KINDS = {2: "task", 3: "dataset", 4: "model", 5: "checkpoint", 7: "output", 8: "non-finite", 9: "device"}


def assert_failed(finished, code, *words):
    """The code, one line with these words, and the same line in `result.json`."""
    assert finished.code == code, finished.stderr
    missing = [word for word in words if word not in finished.error]
    assert not missing, finished.error
    result = finished.result
    assert (result["status"], result["code"], result["kind"]) == ("failed", code, KINDS[code])
    assert result["message"] == finished.error
    assert not (finished.out / "checkpoint").exists()


def assert_refused(finished, code, *words):
    """The same for `--plan`, which writes nothing."""
    assert finished.code == code, finished.stderr
    missing = [word for word in words if word not in finished.error]
    assert not missing, finished.error
    assert not finished.out.exists()


# --- 0 --------------------------------------------------------------------------------------------------------------


def test_help_and_version():
    for flag, words in {"--help": ("--task", "--output-dir", "--plan", "OUTPUT_DIR"), "--version": (".",)}.items():
        finished = run_job(None, None, flag)
        assert finished.code == 0
        assert finished.stderr == ""
        assert all(word in finished.stdout for word in words)


def test_plan_says_what_would_run(task, tmp_path):
    changes = {"train_args.scale_lr": True, "train_args.num_train_steps": 4, "train_args.learning_rate": 1e-4}
    plan = succeed(changed(task, changes), tmp_path / "out", "--plan")
    assert not (tmp_path / "out").exists()
    text = " ".join(plan.stdout.split())
    for figure in ("8 images", "3 x 2 micro-batches = 6 images a step", "epoch 2 steps", "steps 0 to 4 of 10"):
        assert figure in text
    assert "0.0006, cosine (0.0001 x 6 by scale_lr)" in text
    assert "lr_warmup_steps" not in text
    warned = succeed(changed(task, {"train_args.lr_scheduler.lr_warmup_steps": 10}), tmp_path / "out", "--plan")
    assert "lr_warmup_steps is 10" in warned.stdout


def test_a_finished_job_again_changes_nothing(task, whole):
    before = snapshot(whole.out)
    again = succeed(task, whole.out)
    assert snapshot(whole.out) == before
    assert "nothing to do" in again.stderr


# --- 2 --------------------------------------------------------------------------------------------------------------

INVALID = {
    "not JSON": (b'{"model": {"name": "x"},}', ["line 1"]),
    "empty": (b"", []),
    "a list": (b"[]", []),
    "a typo": ({"train_args.learning_rat": 1e-4}, ["train_args", "learning_rat", "learning_rate"]),
    "several": ({"lora.rank": 0, "train_args.batch_size": 0, "seed": -1}, ["lora.rank", "batch_size", "seed"]),
    "the adapter's options": (
        {
            "lora": {"alpha": 0, "dropout": 1, "use_rslora": 1},
            "train_args": {"train_text_encoder": "yes", "text_encoder_learning_rate": -1},
        },
        ["5 problems", "lora.alpha: got 0", "lora.dropout: got 1", "use_rslora", "train_text_encoder", "got -1"],
    ),
    "no dataset": ({"dataset": {}}, ["dataset", "name", "url"]),
    "a file URL": ({"dataset": {"url": "file:///etc/passwd"}}, ["dataset.url", "http"]),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_tasks(task, tmp_path, case):
    content, words = INVALID[case]
    given = content if isinstance(content, bytes) else changed(task, content)
    assert_refused(run_job(given, tmp_path / "out", "--plan"), 2, *words)


def test_an_invalid_task_is_recorded(task, tmp_path):
    assert_failed(run_job(changed(task, INVALID["a typo"][0]), tmp_path / "out"), 2, "learning_rate")


@pytest.mark.parametrize(
    "variables",
    [
        {"DEVICE": "tpu"},
        {"CPU_THREADS": "none"},
        {"CPU_THREADS": "0"},
        {"SAVE_SECONDS": "-1"},
        {"MAX_ENCODED_BYTES": "1.5"},
        {"MAX_DATASET_BYTES": "1GB"},
        {"ALLOW_PRIVATE_URLS": "yes"},
    ],
    ids=str,
)
def test_invalid_variables(task, tmp_path, variables):
    ((name, value),) = variables.items()
    assert_failed(run_job(task, tmp_path / "out", env=variables), 2, name, value)


def test_invalid_flags(task, tmp_path):
    assert_failed(run_job(task, tmp_path / "out", "--frobnicate"), 2, "--frobnicate")
    assert_failed(run_job(task, tmp_path / "out", "--device", "tpu"), 2, "tpu")


def test_no_task(tmp_path):
    assert_failed(run_job(None, tmp_path / "out", "--task", tmp_path / "none.json"), 2, "none.json", "TASK_FILE")


def test_targets_that_match_nothing(task, tmp_path):
    """The names that there are."""
    wrong, words = changed(task, {"lora.target_modules": ["to_qq"]}), ("to_qq", "to_q", "to_out.0", "conv1")
    assert_refused(run_job(wrong, tmp_path / "out", "--plan"), 2, *words)
    assert_failed(run_job(wrong, tmp_path / "out"), 2, *words)


# --- 3 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset.name": "/nowhere/at/all"}, ["/nowhere/at/all"]),
        ({"dataset.caption_column": "caption"}, ["'caption'", "text"]),
        ({"dataset.image_column": "picture"}, ["'picture'", "image"]),
        ({"dataset": {"url": "http://127.0.0.1:9/data"}}, ["127.0.0.1", "ALLOW_PRIVATE_URLS"]),
        ({"dataset": {"url": "http://localhost:9/data"}}, ["localhost", "ALLOW_PRIVATE_URLS"]),
    ],
    ids=["no folder", "no caption column", "no image column", "private address", "private name"],
)
def test_unusable_datasets(task, tmp_path, changes, words):
    assert_refused(run_job(changed(task, changes), tmp_path / "out", "--plan"), 3, *words)


def test_an_empty_dataset(task, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_failed(run_job(changed(task, {"dataset.name": str(tmp_path / "empty")}), tmp_path / "out"), 3)


def test_a_dataset_that_the_server_does_not_have(task, tmp_path):
    with serving({}) as (address, asked):
        gone = changed(task, {"dataset": {"url": f"{address}/gone"}})
        assert_refused(run_job(gone, tmp_path / "out", "--plan", env={"ALLOW_PRIVATE_URLS": "1"}), 3, "404")
    assert asked == ["/gone"]


def test_no_image_is_readable(task, tmp_path):
    images = build_dataset(tmp_path / "images", 3)
    for path in images.glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    finished = run_job(changed(task, {"dataset.name": str(images)}), tmp_path / "out")
    assert_failed(finished, 3, "readable")
    assert finished.result["skipped_images"] == 3


# --- 4 --------------------------------------------------------------------------------------------------------------


def _edit(path, **changes):
    path.write_text(json.dumps(read_json(path) | changes))


def _break(folder, how):
    if how == "missing":
        shutil.rmtree(folder)
    elif how == "another class":
        _edit(folder / "model_index.json", _class_name="PixArtSigmaPipeline")
    elif how == "a refiner":
        _edit(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    elif how == "no component":
        shutil.rmtree(folder / "vae")
    elif how == "pickled":
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
    elif how == "no index":
        (folder / "model_index.json").unlink()
    elif how == "truncated":
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "a tensor short":
        from safetensors.torch import load_file, save_file

        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        del tensors["conv_in.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", ["neither a folder nor a file"]),
        ("another class", ["PixArtSigmaPipeline"]),
        ("a refiner", ["StableDiffusionXLImg2ImgPipeline", "refiner"]),
        ("no component", ["vae"]),
        ("pickled", ["unet", "safetensors"]),
        ("no index", ["model_index.json"]),
    ],
)
def test_unusable_models(task, model, tmp_path, how, words):
    shutil.copytree(model, tmp_path / "model")
    _break(tmp_path / "model", how)
    broken = changed(task, {"model.name": str(tmp_path / "model")})
    assert_refused(run_job(broken, tmp_path / "out", "--plan"), 4, *words)


@pytest.mark.parametrize("how", ["truncated", pytest.param("a tensor short", marks=pytest.mark.slow)])
def test_damaged_weights(task, model, tmp_path, how):
    shutil.copytree(model, tmp_path / "model")
    _break(tmp_path / "model", how)
    assert_failed(run_job(changed(task, {"model.name": str(tmp_path / "model")}), tmp_path / "out"), 4, "unet")


@pytest.mark.parametrize(("key", "code"), [("model.name", 4), ("dataset.name", 3)])
def test_a_hub_that_has_it_not_and_says_no_more(task, tmp_path, key, code):
    """A bare 404, as a mirror answers."""
    with serving({}) as (address, asked):
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "", "HF_HOME": str(tmp_path / "hub")}
        finished = run_job(changed(task, {key: "nobody/nothing"}), tmp_path / "out", "--plan", env=online)
    assert_refused(finished, code, "nobody/nothing", "check the name")
    assert asked


# --- 5 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent(task, tmp_path_factory):
    """The checkpoint after 2 of 10 steps."""
    out = tmp_path_factory.mktemp("parent") / "out"
    return succeed(changed(task, {"train_args.num_train_steps": 2}), out)


def test_no_such_checkpoint(task, tmp_path):
    assert_failed(run_job(task, tmp_path / "out", "--checkpoint", tmp_path / "none"), 5, "none")
    (tmp_path / "empty").mkdir()
    assert_refused(run_job(task, tmp_path / "out-2", "--plan", "--checkpoint", tmp_path / "empty"), 5, "empty")


def _flip(path):
    """One bit in the middle; where there is none, a byte more."""
    data = bytearray(path.read_bytes() or b"\0")
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("change", ["flip", "remove"])
def test_any_damaged_file_of_a_checkpoint(task, parent, tmp_path, change):
    names = sorted(folder_bytes(parent.out / "checkpoint"))
    assert len(names) >= 6
    for name in names:
        folder = tmp_path / name / "checkpoint"
        shutil.copytree(parent.out / "checkpoint", folder)
        _flip(folder / name) if change == "flip" else (folder / name).unlink()
        finished = run_job(task, tmp_path / "out", "--plan", "--checkpoint", folder)
        assert_refused(finished, 5, name if change == "flip" else "")


def test_a_resumed_run_refuses_a_damaged_checkpoint(task, parent, tmp_path):
    shutil.copytree(parent.out / "checkpoint", tmp_path / "checkpoint")
    _flip(tmp_path / "checkpoint" / "state.safetensors")
    finished = run_job(task, tmp_path / "out", "--checkpoint", tmp_path / "checkpoint")
    assert_failed(finished, 5, "state.safetensors")


OTHER_WORLDS = {
    "rank": ({"lora.rank": 4}, ["2", "4"]),
    "targets": ({"lora.target_modules": ["to_q"]}, ["to_q", "to_out.0"]),
    "adapter": ({"lora.init_lora_weights": "loftq"}, ["'lora'", "'loftq'"]),
    "adapter's options": (
        {"lora.alpha": 5, "lora.use_rslora": True, "train_args.train_text_encoder": True},
        [
            "alpha is at its default",
            "5.0",
            "use_rslora is at its default",
            "True",
            "train_text_encoder is at its default",
        ],
    ),
    "resolution": ({"train_args.resolution": 128}, ["64", "128"]),
    "precision": ({"mixed_precision": "bf16"}, ["'no'", "'bf16'"]),
    "prediction type": ({"train_args.prediction_type": "v_prediction"}, ["'epsilon'", "'v_prediction'"]),
    "batch size": ({"train_args.batch_size": 5}, ["3", "5"]),
    "accumulation": ({"train_args.gradient_accumulation_steps": 9}, ["2", "9"]),
    "seed": ({"seed": 11}, ["7", "11"]),
}


@pytest.mark.parametrize("what", OTHER_WORLDS)
def test_another_world(task, parent, tmp_path, what):
    """Refused, with both values."""
    changes, values = OTHER_WORLDS[what]
    finished = run_job(changed(task, changes), tmp_path / "out", "--plan", "--checkpoint", parent.out / "checkpoint")
    assert_refused(finished, 5, *values)


def test_another_model_and_another_dataset(task, parent, dataset, tmp_path):
    """By their content: one image, one caption, other weights."""
    model = build_sd(tmp_path / "model", seed=5)
    images, captions = tmp_path / "images", tmp_path / "captions"
    shutil.copytree(dataset, images)
    shutil.copytree(dataset, captions)
    shutil.copy(images / "0000.png", images / "0001.png")
    metadata = captions / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a red square", "a red squere"))
    resume = ("--plan", "--checkpoint", parent.out / "checkpoint")
    finished = run_job(changed(task, {"model.name": str(model)}), tmp_path / "out", *resume)
    assert_refused(finished, 5, "the files of the base model have changed since ('sha256:")
    for folder in (images, captions):
        finished = run_job(changed(task, {"dataset.name": str(folder)}), tmp_path / "out", *resume)
        assert_refused(finished, 5, "images or captions have changed since (8 rows then, 8 now)")


def test_what_may_change_is_said(task, parent, tmp_path):
    changes = {"train_args.learning_rate": 5e-4, "train_args.max_train_steps": 12, "validation.num_images": 2}
    plan = succeed(changed(task, changes), tmp_path / "out", "--plan", "--checkpoint", parent.out / "checkpoint")
    assert "steps 2 to 12 of 12" in plan.stdout
    assert "train_args.learning_rate changes from 0.001 to 0.0005 at step 2" in plan.stdout


# --- 7 --------------------------------------------------------------------------------------------------------------


def test_the_results_of_another_job_stay(short_task, parent, tmp_path):
    """Nothing in the folder is touched, `result.json` included, until it is said to overwrite."""
    out = tmp_path / "out"
    shutil.copytree(parent.out, out)
    before = snapshot(out)
    for flags in ((), ("--plan",)):
        refused = run_job(short_task, out, *flags)
        assert refused.code == 7, refused.stderr
        assert "--overwrite" in refused.error
        assert snapshot(out) == before
    assert "learning rate" in refused.stdout  # the plan is told first
    assert run_job(short_task, out, "--plan", "--overwrite").code == 0
    assert snapshot(out) == before
    replaced, elsewhere = together(
        lambda: succeed(short_task, out, "--overwrite"), lambda: succeed(short_task, tmp_path / "elsewhere")
    )
    assert_same(replaced.folders(), elsewhere.folders())
    assert replaced.result["status"] == "done"


def test_anything_else_in_its_place_stays(short_task, tmp_path):
    """A folder called `checkpoint` of which this program knows nothing."""
    out = tmp_path / "out"
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint" / "pytorch_lora_weights.safetensors").write_bytes(b"a year's work")
    before = snapshot(out)
    assert run_job(short_task, out).code == 7
    assert snapshot(out) == before


def test_the_progress_of_another_job_stays(task, short_task, tmp_path):
    out = tmp_path / "out"
    long = changed(task, {"train_args.num_train_steps": 500, "train_args.max_train_steps": 500})
    job = start_job(long, out, env={"SAVE_SECONDS": "0"})
    job.until((out / ".job" / "progress").exists, "a save")
    job.process.kill()
    job.process.wait()
    before = snapshot(out)
    refused = run_job(short_task, out)
    assert refused.code == 7, refused.stderr
    assert "progress" in refused.error
    assert snapshot(out) == before


def test_the_output_folder_is_a_file(task, tmp_path):
    (tmp_path / "out").write_text("something")
    finished = run_job(task, tmp_path / "out")
    assert finished.code == 7
    assert str(tmp_path / "out") in finished.error
    assert (tmp_path / "out").read_text() == "something"


def test_the_output_folder_is_not_writable(task):
    """For a user that is not root, whom nothing stops."""
    prefix = []
    if os.geteuid() == 0:
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        probe = [*prefix, sys.executable, str(ENTRYPOINT), "--version"]
        can = shutil.which("setpriv") and not subprocess.run(probe, check=False, capture_output=True).returncode
        if not can:
            pytest.skip("cannot start the program as another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        for out in (folder, folder / "new"):
            finished = run_job(None, out, "--task", "/none", prefix=prefix, cwd=Path("/"))
            assert finished.code == 7, finished.stderr
            assert str(out) in finished.error
            assert "writable" in finished.error
        assert folder_bytes(folder) == {}
        folder.chmod(0o755)


# --- 8, 9 -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(task, tmp_path):
    """Stops before the update; the last good state is kept, from which the same command goes on."""
    wild = changed(task, {"train_args.learning_rate": 1e30, "train_args.lr_scheduler": {"lr_scheduler": "constant"}})
    first = run_job(wild, tmp_path / "out")
    assert_failed(first, 8, "learning_rate")
    good = first.result["global_step"]
    assert good >= 1
    again = run_job(wild, tmp_path / "out")
    assert_failed(again, 8, "learning_rate")
    assert again.result["resumed_from_step"] == again.result["global_step"] == good
    assert again.result["steps_trained"] == 0


@pytest.mark.parametrize(
    ("alpha", "rate", "words"),
    [
        (1e18, 1e21, "lora.alpha"),  # finite weights, but not at this strength
        pytest.param(1e30, 1e-3, "gradient", marks=pytest.mark.slow),
        pytest.param(1e308, 1e-3, "loss", marks=pytest.mark.slow),
    ],
)
def test_a_strength_that_leaves_float32(task, tmp_path, alpha, rate, words):
    changes = {"train_args.num_train_steps": 1, "train_args.learning_rate": rate, "train_args.lr_scheduler": {}}
    assert_failed(run_job(changed(task, {"lora.alpha": alpha, **changes}), tmp_path / "out"), 8, words)


def test_no_gpu(task, tmp_path):
    finished = run_job(task, tmp_path / "out", env={"DEVICE": "", "CUDA_VISIBLE_DEVICES": ""})
    assert_failed(finished, 9, "--gpus all", "DEVICE=cpu")


def test_fp16_on_a_cpu(task, tmp_path):
    assert_refused(run_job(changed(task, {"mixed_precision": "fp16"}), tmp_path / "out", "--plan"), 9, "fp16", "bf16")


# --- 75 -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_in_trouble(task, tmp_path):
    """At least four attempts, within two minutes or so."""
    with serving({"/busy": 503}) as (address, asked):
        busy = changed(task, {"dataset": {"url": f"{address}/busy"}})
        finished = run_job(busy, tmp_path / "out", "--plan", env={"ALLOW_PRIVATE_URLS": "1"})
    assert finished.code == 75, finished.stderr
    assert "503" in finished.error
    assert len(asked) >= 4


# --- Where things come from -----------------------------------------------------------------------------------------


def _plan(*flags, task=None, env=None, cwd=None, steps):
    """The number of steps tells the tasks apart."""
    finished = run_job(task, None, "--plan", *flags, env=env, cwd=cwd)
    assert finished.code == 0, finished.stderr
    assert f"of {steps} (" in finished.stdout, finished.stdout


def _text(task, steps):
    return json.dumps(changed(task, {"train_args.max_train_steps": steps}))


def test_where_the_task_comes_from(task, tmp_path):
    """The flag, then TASK_JSON, then TASK_FILE; an empty variable is not set."""
    flag, file = tmp_path / "flag.json", tmp_path / "file.json"
    flag.write_text(_text(task, 21))
    file.write_text(_text(task, 23))
    both = {"TASK_JSON": _text(task, 22), "TASK_FILE": str(file)}
    _plan("--task", flag, env=both, steps=21)
    _plan(env=both, steps=22)
    _plan(env=both | {"TASK_JSON": ""}, steps=23)
    assert run_job(None, None, "--plan", env={"TASK_JSON": "", "TASK_FILE": ""}).code == 2
    done = subprocess.run(
        [sys.executable, str(ENTRYPOINT), "--plan", "--task", "-"],
        check=False,
        input=_text(task, 24).encode(),
        capture_output=True,
        env={"PATH": os.environ["PATH"], **both, "DEVICE": "cpu", "HOME": str(tmp_path)},
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert b"of 24 (" in done.stdout


def test_relative_paths(task, parent, tmp_path):
    """They start from the task file's folder; of a task without a file, from the working folder."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    for name, target in {
        "model": task["model"]["name"],
        "images": task["dataset"]["name"],
        "parent": parent.out / "checkpoint",
    }.items():
        (inside / name).symlink_to(target)
    changes = {"model.name": "model", "dataset.name": "./images", "checkpoint": "parent"}
    relative = changed(task, {**changes, "train_args.max_train_steps": 25})
    (inside / "task.json").write_text(json.dumps(relative))
    _plan("--task", inside / "task.json", cwd=outside, steps=25)
    _plan("--task", "../inside/task.json", cwd=outside, steps=25)
    _plan(env={"TASK_FILE": "task.json"}, cwd=inside, steps=25)
    _plan(env={"TASK_JSON": json.dumps(relative)}, cwd=inside, steps=25)
    assert run_job(None, None, "--plan", env={"TASK_JSON": json.dumps(relative)}, cwd=outside).code in (3, 4, 5)


def test_where_the_checkpoint_comes_from(task, parent, tmp_path):
    """The flag, then CHECKPOINT_DIR, then the task."""
    own, none = str(parent.out / "checkpoint"), str(tmp_path / "none")

    def code(in_task, variable, *flags):
        return run_job(
            changed(task, {"checkpoint": in_task}), None, "--plan", *flags, env={"CHECKPOINT_DIR": variable}
        ).code

    assert code(None, "") == 0
    assert code(none, "") == 5
    assert code(none, own) == 0
    assert code(own, none) == 5
    assert code(own, "") == 0
    assert code(none, none, "--checkpoint", own) == 0
    assert code(own, own, "--checkpoint", none) == 5


def test_where_results_and_devices_come_from(task, tmp_path):
    """A flag wins over its variable."""
    invalid = changed(task, {"seed": -1})
    assert run_job(invalid, tmp_path / "flag", env={"OUTPUT_DIR": str(tmp_path / "variable")}).result["code"] == 2
    assert not (tmp_path / "variable").exists()
    assert run_job(invalid, None, env={"OUTPUT_DIR": str(tmp_path / "variable")}).code == 2
    assert read_json(tmp_path / "variable" / "result.json")["code"] == 2
    assert run_job(task, None, "--plan", "--device", "cpu", env={"DEVICE": "tpu"}).code == 0


def test_where_the_cache_is(short_task, tmp_path):
    """A flag wins over its variable; without both it is in the user's own cache folder."""
    centred = changed(short_task, {"transforms.center_crop": True})
    succeed(centred, tmp_path / "out", "--cache-dir", tmp_path / "cache", env={"CACHE_DIR": str(tmp_path / "other")})
    assert folder_bytes(tmp_path / "cache" / "encoded")
    assert not (tmp_path / "other").exists()

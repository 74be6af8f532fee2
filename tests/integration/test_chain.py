"""However a training is cut into tasks, and wherever it runs, the last result has the bits of one uninterrupted run."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tests.support.harness import (
    assert_same,
    changed,
    folder_bytes,
    perturbed,
    run_chain,
    run_job,
    slice_environment,
    snapshot,
    start_job,
    succeed,
    together,
)

CUTS = (1, 4, 2, 3)
V_PREDICTION = {"train_args.prediction_type": "v_prediction", "train_args.snr_gamma": 5.0}
ADAPTER = {
    "train_args.train_text_encoder": True,
    "train_args.text_encoder_learning_rate": 3e-4,
    "lora.rank": 4,
    "lora.alpha": 3,
    "lora.dropout": 0.2,
    "lora.use_rslora": True,
    "lora.target_modules": ["to_q", "to_out.0", "conv1", "conv_in"],
}
"""All of the adapter's options."""
KINDS = {
    "epsilon": {},
    "bf16, the task's v_prediction": {"mixed_precision": "bf16", "train_args.noise_offset": 0.05, **V_PREDICTION},
    "text encoder, alpha, dropout, rslora, convolutions": ADAPTER,
    "xl": {},
}
SLOW_KINDS = {
    "loftq, convolutions": {
        "lora.init_lora_weights": "loftq",
        "lora.target_modules": r".*(to_q|to_v|conv1|conv_in)",
        "lora.rank": 3,
    },
    "v_prediction by the model, Min-SNR, noise offset": {"train_args.snr_gamma": 5.0, "train_args.noise_offset": 0.1},
    "bf16, text encoder, alpha, dropout, rslora, convolutions": {"mixed_precision": "bf16", **ADAPTER},
    "loftq, text encoder, alpha, dropout": {**ADAPTER, "lora.init_lora_weights": "loftq", "lora.use_rslora": False},
    "xl, bf16": {"mixed_precision": "bf16", "train_args.noise_offset": 0.05, **V_PREDICTION},
    "xl, centre crops, LoftQ, convolutions": {
        "transforms.center_crop": True,
        "lora.init_lora_weights": "loftq",
        "lora.target_modules": r".*(to_q|to_v|conv1|conv_in|linear_1)",
    },
    "xl, text encoders, alpha, dropout, rslora, convolutions": ADAPTER,
}


@pytest.fixture
def base(kind, model, v_model, xl_model):
    """The base model of a kind of training."""
    if kind.startswith("xl"):
        return xl_model
    return v_model if kind.startswith("v_prediction") else model


WRITTEN_OUT = {
    "train_args.train_text_encoder": False,
    "train_args.text_encoder_learning_rate": None,
    "lora.alpha": None,
    "lora.dropout": 0,
    "lora.use_rslora": False,
}
"""Defaults."""


def _kinds():
    """Each kind in slices with interpreters and image workers of their own, which take longer than the training.

    The default run has one of these, and the other kinds in forked slices.
    """
    for kind in KINDS | SLOW_KINDS:
        is_default = KINDS.get(kind) is ADAPTER
        yield pytest.param(kind, True, id=kind, marks=() if is_default else pytest.mark.slow)
        if kind in KINDS and not is_default:
            yield pytest.param(kind, False, id=f"{kind}, forked")


@pytest.mark.parametrize("kind, has_own_interpreters", list(_kinds()))
def test_split_anywhere(task, base, whole, tmp_path, kind, has_own_interpreters):
    task = changed(task, {"model.name": str(base), **(KINDS | SLOW_KINDS)[kind]})
    plain = whole.weights()
    whole, chain = together(
        lambda: whole if kind == "epsilon" else succeed(task, tmp_path / "whole"),
        lambda: run_chain(
            task,
            tmp_path,
            CUTS,
            each=lambda index: slice_environment(tmp_path, index, is_forked=not has_own_interpreters),
            changes=lambda index: {"dataloader_num_workers": 2 * (index % 2) if has_own_interpreters else 0},
        ),
    )
    assert_same(chain[-1].weights(), whole.weights())
    assert chain[-1].card == whole.card
    # The equality means something: other settings give other bits.
    assert [name for name, data in whole.weights().items() if kind != "epsilon" and plain[name] == data] in (
        [],
        ["prompts.json"],
    )
    assert [one.result["global_step"] for one in chain] == [1, 5, 7, 10]
    assert [one.result["resumed_from_step"] for one in chain] == [0, 1, 5, 7]
    assert [one.result["steps_trained"] for one in chain] == list(CUTS)
    assert [(one.out / "checkpoint" / "FINISH").exists() for one in chain] == [False, False, False, True]
    assert [one.manifest["parent"] for one in chain] == [None, *(one.manifest["digest"] for one in chain[:-1])]
    # The prompts and the seeds are those of the whole chain.
    prompts = {(one.out / "validation" / "prompts.json").read_bytes() for one in (*chain, whole)}
    assert len(prompts) == 1


def test_same_task_elsewhere_gives_the_same_folders(task, whole, dataset, model, tmp_path):
    """Nothing of the machine is in the two folders: not the clock, a path, the locale, the cache or the workers."""
    moved = {"dataset.name": str(tmp_path / "moved"), "model.name": str(tmp_path / "elsewhere")}
    shutil.copytree(dataset, tmp_path / "moved")
    shutil.copytree(model, tmp_path / "elsewhere")
    # With the cache that the first run filled, with none, and with an empty one, which also grows a stranger's file.
    cold = tmp_path / "cold"
    (cold / "encoded").mkdir(parents=True)
    (cold / "encoded" / "left-over").write_bytes(b"\0" * 100)
    runs = together(
        lambda: succeed(task, tmp_path / "warm", umask=0o077),
        lambda: succeed(changed(task, moved), tmp_path / "none", env={"MAX_ENCODED_BYTES": "0"}),
        lambda: succeed(
            changed(task, {"dataloader_num_workers": 16, "version": "3.0.0", **WRITTEN_OUT}),
            tmp_path / "cold-out",
            env={"CACHE_DIR": str(cold), "OMP_NUM_THREADS": "2", **perturbed(3)},
            cwd=tmp_path,
            umask=0,
        ),
    )
    for run in runs:
        assert_same(run.folders(), whole.folders())
        modes = {path.stat().st_mode & 0o777 for path in run.out.rglob("*") if path.is_file()}
        assert modes == {0o644}


def test_a_corrupt_cache_is_not_believed(task, whole, tmp_path):
    """Flipped bits and cut files in the cache are encoded again, or ignored."""
    centred = changed(task, {"transforms.center_crop": True, "transforms.random_flip": False})
    cache = {"CACHE_DIR": str(tmp_path / "cache")}
    first = succeed(centred, tmp_path / "first", env=cache)
    files = [path for path in (tmp_path / "cache" / "encoded").rglob("*") if path.is_file()]
    assert files
    for index, path in enumerate(files):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 3] if index % 2 else data)
    second = succeed(centred, tmp_path / "second", env=cache)
    assert_same(second.folders(), first.folders())


def test_in_place_until_finished(task, whole, tmp_path):
    """One output folder, one command, as often as it takes: 6 + 4 steps, then nothing more to do."""
    task, out = changed(task, {"train_args.num_train_steps": 6}), tmp_path / "out"
    own = out / "checkpoint"
    steps = []
    while not (own / "FINISH").exists():
        assert len(steps) < 5
        resume = ("--checkpoint", own) if own.exists() else ()
        steps.append(succeed(task, out, *resume).result["global_step"])
    assert steps == [6, 10]
    before = snapshot(out)
    again = succeed(task, out, "--checkpoint", own)
    assert snapshot(out) == before
    assert "nothing to do" in again.stderr
    assert_same(again.weights(), whole.weights())


def test_resuming_a_finished_chain_elsewhere_publishes_the_same(task, whole, tmp_path):
    again = succeed(task, tmp_path / "out", "--checkpoint", whole.out / "checkpoint")
    assert_same(again.weights(), whole.weights())
    assert (again.out / "checkpoint" / "FINISH").exists()
    assert again.result["steps_trained"] == 0
    assert again.result["resumed_from_step"] == again.result["global_step"] == 10


def test_a_lora_alone_is_a_warm_start(task, whole, tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    shutil.copy(whole.out / "checkpoint" / "pytorch_lora_weights.safetensors", folder)
    short = changed(task, {"train_args.num_train_steps": 2})
    other = run_job(changed(short, {"lora.rank": 1}), tmp_path / "out", "--plan", "--checkpoint", folder)
    assert other.code == 5 and "lora.rank is 1" in other.error
    assert "checked when" not in succeed(short, tmp_path / "out", "--plan", "--checkpoint", folder).stdout
    warm = succeed(short, tmp_path / "out", "--checkpoint", folder)
    assert "a LoRA without training state" in warm.stderr
    assert warm.result["resumed_from_step"] == 0
    assert warm.result["global_step"] == 2
    web = tmp_path / "web"
    web.mkdir()
    shutil.copy(whole.out / "checkpoint" / "lora_webui.safetensors", web)
    assert "checked when" not in succeed(short, tmp_path / "again", "--plan", "--checkpoint", web).stdout
    again = succeed(short, tmp_path / "again", "--checkpoint", web)
    assert_same(again.weights(), warm.weights())


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, dataset):
    """The same eight images, of which two are cut off in the middle and one is no image at all."""
    folder = tmp_path_factory.mktemp("damaged") / "images"
    shutil.copytree(dataset, folder)
    for name in ("0002.png", "0005.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "0007.png").write_bytes(b"this is text")
    return folder


def test_unreadable_images_keep_their_place(task, damaged, tmp_path):
    task = changed(task, {"dataset.name": str(damaged)})
    whole, chain = together(
        lambda: succeed(changed(task, {"dataloader_num_workers": 2}), tmp_path / "whole"),
        lambda: run_chain(task, tmp_path, (1, 9), each=lambda index: {"CACHE_DIR": str(tmp_path / f"cache-{index}")}),
    )
    assert_same(chain[-1].weights(), whole.weights())
    assert whole.result["skipped_images"] == 3
    for name in ("0002.png", "0005.png", "0007.png"):
        (line,) = [line for line in whole.stderr.splitlines() if name in line]
        assert line.startswith("skipping image")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_random_cuts(task, base, tmp_path, kind, seed):
    draws = random.Random(f"{kind}{seed}")
    cuts = [draws.randint(1, 4) for _ in range(4)]
    sizes = {
        "train_args.batch_size": draws.randint(1, 5),
        "train_args.gradient_accumulation_steps": draws.randint(1, 3),
    }
    task = changed(task, {"model.name": str(base), **KINDS[kind], **sizes, "train_args.max_train_steps": sum(cuts)})
    whole, chain = together(
        lambda: succeed(changed(task, {"train_args.num_train_steps": sum(cuts)}), tmp_path / "whole"),
        lambda: run_chain(task, tmp_path, cuts, each=lambda index: slice_environment(tmp_path, index)),
    )
    assert_same(chain[-1].weights(), whole.weights())


@pytest.mark.slow
def test_two_jobs_share_a_cache(task, whole, tmp_path):
    """At once, on an empty one."""
    cache = {"CACHE_DIR": str(tmp_path / "cache")}
    jobs = [start_job(task, tmp_path / name, env=cache) for name in ("one", "two")]
    for job in jobs:
        finished = job.finish()
        assert finished.code == 0, finished.stderr
        assert_same(finished.folders(), whole.folders())


def test_published_names(whole):
    """What the contract promises, and no pickle under another name."""
    assert set(folder_bytes(whole.out / "checkpoint")) >= {
        "pytorch_lora_weights.safetensors",
        "lora_webui.safetensors",
        "state.safetensors",
        "state.json",
        "global_step.txt",
        "FINISH",
        "manifest.json",
        "README.md",
    }
    assert (whole.out / "checkpoint" / "FINISH").read_bytes() == b""
    assert (whole.out / "checkpoint" / "global_step.txt").read_text().strip() == "10"
    assert set(folder_bytes(whole.out / "validation")) == {"0.png", "prompts.json"}
    (image,) = json.loads((whole.out / "validation" / "prompts.json").read_bytes())
    assert image.keys() == {"file", "prompt", "seed", "num_inference_steps"}, "the last one is not the default here"

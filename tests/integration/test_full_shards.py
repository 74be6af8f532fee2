"""Whole models whose state and weights are in several files, as those above 5 GB: whole jobs with a lower limit."""

import errno
import json
import signal

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

import entrypoint
from engine.core.files import atomic_files
from engine.results import safetensors_file
from tests.support.harness import changed, clean_environment, folder_bytes

LIMIT = 400_000
STEPS = 10


@pytest.fixture(autouse=True)
def left_as_it_was():
    """A job has a process of its own; what it sets there is put back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    handlers = {signum: signal.getsignal(signum) for signum in numbers}
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def run(task, tmp_path, monkeypatch):
    """Run the program in this process with a limit of so many bytes a file; returns exit code and output folder."""
    lengths = {f"train_args.{key}": STEPS for key in ("num_train_steps", "max_train_steps")}
    whole = {"training_type": "full", "train_args.ema_decay": 0.9, "train_args.batch_size": 1, **lengths}
    own = changed(task, {**whole, "validation.num_inference_steps": 2})

    def run_job(name, steps, *flags, limit=LIMIT):
        monkeypatch.setattr(safetensors_file, "MAX_SHARD_BYTES", limit)
        path, out = tmp_path / f"{name}.json", tmp_path / name
        path.write_text(json.dumps(changed(own, {"train_args.num_train_steps": steps})))
        environment = clean_environment(tmp_path) | {"SAVE_SECONDS": "0"}
        return entrypoint.main(["--task", str(path), "--output-dir", str(out), *map(str, flags)], environment), out

    return run_job


def state_of(out):
    return {
        name: tensor
        for path in (out / "checkpoint").glob("state*.safetensors")
        for name, tensor in load_file(path).items()
    }


def test_a_chain_in_shards_is_the_training_in_one_file(run):
    code, whole = run("whole", STEPS, limit=1 << 40)
    assert code == 0 and (whole / "checkpoint" / "state.safetensors").exists()
    parent = ()
    for steps in (1, 4, 2, 3):
        code, last = run(f"after {len(parent)} {steps}", steps, *parent)
        assert code == 0
        parent = ("--checkpoint", last / "checkpoint")
    assert len(list((last / "checkpoint").glob("state-*-of-*.safetensors"))) > 5
    expected, found = state_of(whole), state_of(last)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    one, several = (UNet2DConditionModel.from_pretrained(out / "checkpoint" / "unet") for out in (whole, last))
    assert len(list((last / "checkpoint" / "unet").glob("*-of-*.safetensors"))) > 1
    assert all(torch.equal(p, several.get_parameter(name)) for name, p in one.named_parameters())
    assert (last / "validation" / "0.png").read_bytes() == (whole / "validation" / "0.png").read_bytes()


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_shard_is_named(run, capsys, damage):
    _, half = run("half", 5)
    shard = sorted((half / "checkpoint").glob("state-*.safetensors"))[2]
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    capsys.readouterr()
    code, out = run("second", 5, "--checkpoint", half / "checkpoint")
    assert code == 5 and shard.name in capsys.readouterr().err
    assert not (out / "checkpoint").exists()


def test_a_disk_that_is_full_in_the_middle_of_a_shard(run, monkeypatch):
    """Again and again, each time some shards later; the same command goes on each time."""
    _, whole = run("whole", STEPS)
    store = atomic_files.store

    def store_in(room):
        def store_some(folder, pieces, **options):
            return store(folder, until_full(pieces), **options)

        def until_full(pieces):
            nonlocal room
            for piece in pieces:
                room -= len(piece)
                if room < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                yield piece

        return store_some

    for attempt in range(1, 6):
        with monkeypatch.context() as patched:
            patched.setattr(atomic_files, "store", store_in(attempt * 9 * LIMIT // 2))
            code, out = run("struck", STEPS)
        assert code == 7 and not (out / "checkpoint").exists()
        assert not [path for path in (out / ".job").rglob("*") if path.name.endswith(".tmp")]
    code, out = run("struck", STEPS)
    assert code == 0 and folder_bytes(out / "checkpoint") == folder_bytes(whole / "checkpoint")

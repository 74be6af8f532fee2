"""Where text encoders do not fit beside the denoiser, a job encodes first, and ends with the bytes of another job."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import replace
from itertools import count

import pytest

import entrypoint
from engine.job import memory
from engine.job.memory import decide
from engine.models.families.flux.model import Flux
from engine.models.parts import transformer_family
from tests.support import tiny
from tests.support.harness import Finished, clean_environment, read_json, succeed
from tests.support.tiny_flux import build_flux

STEPS = 4
FORK = multiprocessing.get_context("fork")
T5, DENOISER = "text_encoder_2", "transformer"
AGAIN = "text encoders are loaded again"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    images = tiny.build_dataset(folder / "images", count=5, captions="list")
    return build_flux(folder / "flux"), images, tiny.build_dataset(folder / "held out", count=2)


@pytest.fixture(scope="module")
def task(inputs, tmp_path_factory):
    """Writes a task, and returns its path."""
    model, images, held_out = inputs
    folder = tmp_path_factory.mktemp("tasks")

    def write(num_steps=STEPS, micro_batches=2, trains_clip=False, **dataset):
        args = {"batch_size": 2, "gradient_accumulation_steps": micro_batches, "resolution": 64, "learning_rate": 0.01}
        value = {
            "model": {"name": str(model)},
            "dataset": {"name": str(images), **dataset},
            "validation": {
                "num_images": 1,
                "num_inference_steps": 2,
                "every_n_steps": 2,
                "dataset": {"name": str(held_out)},
            },
            "train_args": {
                **args,
                "max_train_steps": STEPS,
                "num_train_steps": num_steps,
                "train_text_encoder": trains_clip,
            },
            "transforms": {"random_flip": True},
            "lora": {"rank": 2},
        }
        path = folder / f"{num_steps}-{micro_batches}-{trains_clip}-{'-'.join(dataset)}.json"
        path.write_text(json.dumps(value))
        return path

    return write


@pytest.fixture
def apart(monkeypatch):
    """Text encoders and denoiser do not fit together."""
    monkeypatch.setattr(memory, "decide", lambda *args: replace(decide(*args), apart=True))


@pytest.fixture(scope="module")
def whole_of(task, tmp_path_factory):
    """The result of a task where everything fits, made once."""
    made = {}

    def whole(**options):
        key = str(options)
        if key not in made:
            made[key] = succeed(read_json(task(**options)), tmp_path_factory.mktemp("whole") / "out")
        return made[key]

    return whole


def run(task, out, *flags, code=0, processes=1, **environment):
    """Run the program in forks of this process, which have its families and its rule."""
    argv = ["--task", str(task), "--output-dir", str(out), *map(str, flags)]
    variables = clean_environment(out.parent) | {"CACHE_DIR": str(out.parent / f"cache of {out.name}")} | environment
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def job(rank):
        if processes > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            variables.update({name: str(number) for name, number in place.items()})
            variables.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.clear()
        os.environ.update(variables)
        sys.stderr = (out.parent / f"{out.name}-{rank}.err").open("a", buffering=1)
        os._exit(entrypoint.main(argv, variables))

    running = [FORK.Process(target=job, args=(rank,)) for rank in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    said = (out.parent / f"{out.name}-0.err").read_text()
    assert [process.exitcode for process in running] == [code] * processes, said
    return Finished(code=code, stdout="", stderr=said, out=out)


@pytest.fixture
def loads(monkeypatch, tmp_path):
    """The components that jobs have loaded so far, in order."""
    path = tmp_path / "loads"
    path.touch()
    load = transformer_family.load_module

    def recorded(cls, args, component, device):
        with path.open("a") as file:
            file.write(f"{component}\n")
        return load(cls, args, component, device)

    monkeypatch.setattr(transformer_family, "load_module", recorded)
    return lambda: [name for name in path.read_text().split() if name in (T5, DENOISER)]


def test_the_bytes_are_the_same_and_the_text_encoder_is_loaded_once(whole_of, apart, task, loads, tmp_path):
    """Also for the held-out loss and for the images of earlier steps and of the baseline."""
    ahead = run(task(), tmp_path / "ahead")
    assert ahead.folders() == whole_of().folders()
    assert loads() == [T5, DENOISER]
    assert "before the denoiser is loaded" in ahead.stderr and AGAIN not in ahead.stderr


@pytest.mark.slow
def test_what_an_earlier_run_has_encoded_needs_no_text_encoder(whole_of, apart, task, loads, tmp_path):
    run(task(), tmp_path / "first")
    again = run(task(), tmp_path / "again", CACHE_DIR=str(tmp_path / "cache of first"))
    assert loads() == [T5, DENOISER, DENOISER] and again.folders() == whole_of().folders()


@pytest.mark.parametrize("room", [pytest.param(0, marks=pytest.mark.slow), 12_000])
def test_what_the_cache_cannot_hold_is_encoded_while_training(whole_of, apart, task, loads, tmp_path, room):
    ahead = run(task(), tmp_path / "ahead", MAX_ENCODED_BYTES=str(room))
    assert ahead.folders() == whole_of().folders()
    assert loads()[:2] == [T5, DENOISER] and loads()[2:] == [T5] * len(loads()[2:])
    assert "captions after step 0 are encoded while training" in ahead.stderr
    assert AGAIN in ahead.stderr and "a larger MAX_ENCODED_BYTES" in ahead.stderr


@pytest.mark.slow
def test_shuffled_tags_are_encoded_ahead_too(apart, task, loads, tmp_path):
    ahead = run(task(shuffle_tags=True), tmp_path / "ahead")
    assert loads() == [T5, DENOISER] and AGAIN not in ahead.stderr


@pytest.mark.slow
def test_text_encoders_that_are_trained_stay(whole_of, apart, task, loads, tmp_path):
    ahead = run(task(trains_clip=True), tmp_path / "ahead")
    assert ahead.folders() == whole_of(trains_clip=True).folders()
    assert loads() == [T5, DENOISER]


@pytest.mark.slow
def test_several_processes(whole_of, monkeypatch, task, loads, tmp_path):
    """Both do not fit for one of the processes, whose memory is smaller."""
    monkeypatch.setattr(memory, "decide", lambda *args: replace(decide(*args), apart=os.environ["RANK"] == "1"))
    ahead = run(task(micro_batches=1), tmp_path / "ahead", processes=2)
    assert ahead.weights() == whole_of().weights()
    assert sorted(loads()) == [T5] * 2 + [DENOISER] * 2


@pytest.mark.parametrize(
    "signum, processes",
    [
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
    ],
)
def test_ended_while_it_encodes_it_goes_on_there(whole_of, apart, task, loads, tmp_path, signum, processes):
    encode, calls = Flux.encode_fixed, count(1)

    def counted(self, caption):
        if next(calls) == 2:
            os.kill(os.getpid(), signum)
        return encode(self, caption)

    own, code = task(micro_batches=2 // processes), -9 if signum == signal.SIGKILL else 128 + signum
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flux, "encode_fixed", counted)
        ended = run(own, tmp_path / "out", code=code, processes=processes)
    assert DENOISER not in loads()
    if signum == signal.SIGTERM:
        assert ended.result["status"] == "interrupted" and "Traceback" not in ended.stderr
    assert run(own, tmp_path / "out", processes=processes).weights() == whole_of().weights()


@pytest.mark.slow
def test_a_chain_encodes_what_its_own_steps_need(whole_of, apart, task, tmp_path):
    run(task(1), tmp_path / "first")
    last = run(task(STEPS), tmp_path / "last", "--checkpoint", tmp_path / "first" / "checkpoint")
    assert last.weights() == whole_of().weights()

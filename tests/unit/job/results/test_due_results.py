"""What is made in between, by whom and when; the real thing is in tests/integration/test_step_results.py."""

import hashlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.core.files.atomic_files import Stored
from engine.evaluation.validation_images import Drawn
from engine.job.results import due_results
from engine.job.results.due_results import DueResults
from engine.models.families.sd.spec import SPEC
from engine.results.output.step_results import StepResults
from engine.task.plan.steps import StepRange
from engine.task.task import Dataset, Model, Task, Validation
from engine.training.methods.registry import METHODS


class Output:
    """Results of steps in memory."""

    def __init__(self):
        self.files = {}

    def store(self, pieces):
        data = b"".join(pieces)
        stored = Stored(Path("kept"), hashlib.sha256(data).hexdigest())
        self.files[stored.sha256] = data
        return stored


@pytest.fixture
def made(monkeypatch):
    """Everything that happens, in order."""
    events = []
    files = {"pytorch_lora_weights.safetensors": b"lora", "lora_webui.safetensors": b"webui"}
    monkeypatch.setattr(due_results.publish, "exported", lambda job, training: files)

    def draw(images, family, *, what, resolution, device, check_stop):
        events.append((what, [image.prompt for image in images]))
        check_stop()
        return Drawn({image.file: image.file.encode() for image in images}, frozenset())

    monkeypatch.setattr(due_results, "draw", draw)
    return events


def results(made, *, start=0, stop=20, hashes=None, broadcast=lambda action: action(), together=False, **task):
    task = Task(model=Model(name="m"), dataset=Dataset(name="d"), **task)
    step_range = StepRange(num_rows=8, batch_size=1, micro_batches=2, start_step=start, stop_step=stop, max_steps=stop)
    job = SimpleNamespace(
        task=task, method=METHODS["lora"], dataset=None, step_range=step_range, base=SimpleNamespace(family=SPEC)
    )
    context = SimpleNamespace(
        job=job,
        device="cpu",
        processes=SimpleNamespace(broadcast=broadcast),
        outcome=SimpleNamespace(clock=SimpleNamespace(phase=lambda name: nullcontext())),
        stop=SimpleNamespace(check=lambda save: made.append("looked for a signal")),
    )
    placement = SimpleNamespace(
        bring=lambda: made.append("encoders come"), release=lambda: made.append("encoders may go")
    )
    trainer = SimpleNamespace(step=start, averaged=nullcontext)
    training = SimpleNamespace(trainer=trainer, family=None, step_results=StepResults(Output(), hashes))
    saver = SimpleNamespace(
        save=lambda: made.append("saved"),
        save_alone=lambda: made.append("saved alone"),
        saves_together=together,
        require_sound=lambda: made.append("sound"),
    )
    trackers = SimpleNamespace(event=lambda name: made.append(f"told {name}"))
    return DueResults(
        context,
        training,
        saver,
        trackers,
        SimpleNamespace(results_changed=lambda **_: None, renew_if_due=lambda: None),
        placement=placement,
    ), training


PROMPTS = Validation(prompts=("a", "b"), num_images=2, every_n_steps=6)
IMAGES = ["sound", "encoders come", ("validation at step 6", ["a", "b"]), "looked for a signal", "encoders may go"]


def test_a_lora_then_the_images_then_the_progress(made):
    own, training = results(made, validation=PROMPTS, checkpoint_every_n_steps=3)
    for step in range(7):
        training.trainer.step = step
        own.make()
    assert made == ["sound", "told lora", "sound", "told lora", *IMAGES, "saved", "told images"]
    assert set(training.step_results.hashes) == {
        *(f"checkpoint/steps/00000{step}{suffix}.safetensors" for step in (3, 6) for suffix in ("", "_webui")),
        *(f"validation/step-000006/{k}.png" for k in (0, 1)),
    }


def test_what_is_kept_is_not_made_again(made):
    own, training = results(made, validation=PROMPTS, checkpoint_every_n_steps=3)
    training.trainer.step = 6
    own.make()
    names = dict(training.step_results.hashes)
    made.clear()
    own.make()
    assert made == [] and training.step_results.hashes == names
    missing = {name: digest for name, digest in names.items() if name.startswith("checkpoint/")}
    own, training = results(made, validation=PROMPTS, checkpoint_every_n_steps=3, hashes=missing)
    training.trainer.step = 6
    own.make()
    assert made == [*IMAGES, "saved", "told images"]


def test_nothing_is_due_by_default(made):
    own, training = results(made)
    for step in range(20):
        training.trainer.step = step
        own.make()
    assert made == [] and training.step_results.hashes == {}


def test_the_lora_that_a_chain_goes_on_from_is_kept_before_the_first_step(made):
    own, training = results(made, start=6, validation=PROMPTS, checkpoint_every_n_steps=3)
    own.make()
    assert made == ["sound", "told lora"] and len(training.step_results.hashes) == 2


def test_the_limit_is_of_steps(made):
    own, training = results(made, checkpoint_every_n_steps=1, checkpoint_limit=2)
    for step in range(1, 10):
        training.trainer.step = step
        own.make()
    assert {name[17:23] for name in training.step_results.hashes} == {"000008", "000009"}


def test_other_processes_wait_for_the_first_one(made):
    hashes = {"validation/step-000006/0.png": "digest"}
    own, training = results(made, validation=PROMPTS, broadcast=lambda action: hashes)
    training.trainer.step = 6
    own.make()
    assert made == ["sound", "saved", "told images"] and training.step_results.hashes == hashes


def test_where_all_processes_save_together_they_save_before_the_first_one_draws(made):
    own, training = results(made, validation=PROMPTS, together=True)
    training.trainer.step = 6
    own.make()
    assert made == ["saved", *IMAGES, "saved", "told images"]

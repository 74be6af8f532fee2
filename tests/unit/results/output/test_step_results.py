"""Results of steps before a task's end: when they are due, and how they are stored."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from engine.core.errors import OutputError
from engine.core.files import atomic_files
from engine.results.output import step_results
from engine.results.output.folder import JobRecord, OutputFolder
from engine.results.output.step_results import StepResults
from engine.task.task import Validation


def step_range(start, stop):
    return SimpleNamespace(start_step=start, stop_step=stop, steps_per_epoch=3)


def task(**values):
    validation = Validation(**{key: values.pop(key) for key in ("every_n_steps", "every_n_epochs") if key in values})
    return SimpleNamespace(validation=validation, **{"checkpoint_every_n_steps": None, **values})


class TestWhen:
    @pytest.mark.parametrize(
        ("wanted", "start", "stop", "steps"),
        [
            ({}, 0, 100, []),
            ({"every_n_steps": 10}, 0, 35, [10, 20, 30]),
            ({"every_n_steps": 10}, 10, 30, [20]),
            ({"every_n_steps": 10}, 0, 10, []),
            ({"every_n_steps": 1}, 4, 7, [5, 6]),
            ({"every_n_epochs": 2}, 5, 13, [6, 12]),
            ({"every_n_steps": 10}, 20, 20, []),
        ],
    )
    def test_images_are_drawn_inside_a_task(self, wanted, start, stop, steps):
        assert list(step_results.image_steps(task(**wanted), step_range(start, stop))) == steps

    @pytest.mark.parametrize(
        ("every", "start", "stop", "steps"),
        [
            (None, 0, 100, []),
            (10, 0, 30, [10, 20]),
            (10, 10, 30, [10, 20]),
            (10, 11, 31, [20, 30]),
            (1, 0, 3, [1, 2]),
            (10, 20, 20, []),
        ],
    )
    def test_the_lora_that_a_task_begins_at_is_kept_too(self, every, start, stop, steps):
        assert (
            list(step_results.checkpoint_steps(task(checkpoint_every_n_steps=every), step_range(start, stop))) == steps
        )

    @pytest.mark.parametrize("cuts", [[7], [10, 20], [1, 2, 3, 30, 39], [15, 16, 17]])
    def test_a_chain_keeps_the_loras_of_one_task(self, cuts):
        every = task(checkpoint_every_n_steps=5)
        bounds = [0, *cuts, 40]
        chain = [step for one in pairwise(bounds) for step in step_results.checkpoint_steps(every, step_range(*one))]
        assert chain == list(step_results.checkpoint_steps(every, step_range(0, 40)))


def test_the_latest_steps_stay_with_both_their_files():
    names = [f"steps/{step:06}{suffix}.safetensors" for step in (5, 999_999, 1_000_000) for suffix in ("", "_webui")]
    assert step_results.latest(names, 2) == set(names[2:])
    assert step_results.latest(names, 9) == set(names) and step_results.latest([], 1) == set()


@pytest.fixture
def output(tmp_path):
    with OutputFolder.lock(tmp_path / "out") as locked:
        locked.claim(JobRecord("task", None), in_place=False, overwrite=False)
        yield locked


def stored(output):
    folder = output.root / ".job" / "kept"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def contents(store, folder):
    return {name: b"".join(file.chunks()) for name, file in store.files(folder).items()}


class TestStepResults:
    def test_written_read_and_limited(self, output):
        store = StepResults(output)
        for step in (1, 2, 3):
            store.hashes |= store.write({f"checkpoint/steps/{step:06}.safetensors": b"lora %d" % step})
        store.hashes |= store.write({"validation/step-000001/0.png": b"png"})
        assert contents(store, step_results.IMAGES) == {"step-000001/0.png": b"png"}
        assert set(store.files(step_results.WEIGHTS)) == {f"steps/00000{step}.safetensors" for step in (1, 2, 3)}
        before = dict(store.hashes)
        store.limit_weights(1)
        assert contents(store, step_results.WEIGHTS) == {"steps/000003.safetensors": b"lora 3"}
        assert set(store.hashes) == {"checkpoint/steps/000003.safetensors", "validation/step-000001/0.png"}
        assert stored(output) == set(before.values())  # the saved progress may name them
        store.delete_unnamed()
        assert stored(output) == set(store.hashes.values())

    def test_equal_files_are_one_and_stay_as_long_as_one_is_named(self, output):
        store = StepResults(output)
        store.hashes |= store.write({f"checkpoint/steps/00000{step}.safetensors": b"same" for step in (1, 2)})
        store.limit_weights(1)
        store.delete_unnamed()
        assert contents(store, step_results.WEIGHTS) == {"steps/000002.safetensors": b"same"}

    def test_nothing_is_made_where_nothing_is_kept(self, output):
        StepResults(output).delete_unnamed()
        assert not (output.root / ".job" / "kept").exists()

    def test_a_file_that_is_gone_is_not_published_as_another(self, output):
        store = StepResults(output)
        store.hashes |= store.write({"validation/step-000001/0.png": b"png"})
        (output.root / ".job" / "kept" / store.hashes["validation/step-000001/0.png"]).write_bytes(b"p")
        with pytest.raises(OutputError, match=r"a part of the result, is gone or damaged; run the same command again"):
            output.publish(output.validation, store.files(step_results.IMAGES), last="step-000001/0.png")
        assert not output.validation.exists()

    def test_the_files_are_for_everyone(self, output):
        hashes = StepResults(output).write({"validation/step-000001/0.png": b"png"})
        (digest,) = hashes.values()
        path = output.root / ".job" / "kept" / digest
        assert path.stat().st_mode & 0o777 == atomic_files.FILE_MODE
        assert path.parent.stat().st_mode & 0o777 == atomic_files.FOLDER_MODE

    def test_another_jobs_are_gone(self, output):
        StepResults(output).write({"a": b"1"})
        output.claim(JobRecord("another", None), in_place=False, overwrite=True)
        assert stored(output) == set()

"""From settings to a job: what is refused, and what is pinned."""

import json
from types import SimpleNamespace

import pytest

from engine.core.errors import CheckpointError, DatasetError, DeviceError, ModelError, TaskError, TemporaryError
from engine.job import prepare
from engine.job.job import request_digest
from engine.models.families.sd.spec import SPEC
from engine.results.output.folder import OutputFolder
from engine.task.task import Prompt, parse_task
from tests.support.jobs import COMMIT, before_of, job_of, text


def test_only_a_chains_own_commit_is_pinned():
    task = parse_task(text().encode(), source="test")
    pinned = prepare._pinned_model
    assert pinned(None, task) is None
    assert pinned(before_of({"identity": f"m@{COMMIT}", "revision": COMMIT}), task) == COMMIT
    assert pinned(before_of({"identity": f"other@{COMMIT}", "revision": COMMIT}), task) is None
    asked_otherwise = before_of({"identity": f"m@{COMMIT}", "revision": COMMIT}, revision="v2")
    assert pinned(asked_otherwise, task) is None
    assert pinned(before_of({"identity": "sha256:x", "revision": None}), task) is None


@pytest.mark.parametrize(
    "base", [{"identity": "m@None"}, {"identity": "m@5", "revision": 5}, {"identity": "m@None", "revision": None}]
)
def test_a_strangers_manifest_pins_nothing_but_a_commit(base):
    assert prepare._pinned_model(before_of(base), parse_task(text().encode(), source="test")) is None


def test_in_place_is_the_same_folder_by_whatever_name(tmp_path):
    own = tmp_path / "out" / "checkpoint"
    assert prepare.is_in_place(own, tmp_path / "out") is False
    own.mkdir(parents=True)
    (tmp_path / "link").symlink_to(own)
    assert prepare.is_in_place(tmp_path / "link", tmp_path / "out")
    assert not prepare.is_in_place(tmp_path, tmp_path / "out") and not prepare.is_in_place(None, tmp_path / "out")


def test_fp16_on_a_cpu_is_a_device_error(tmp_path):
    given = SimpleNamespace(
        task_bytes=text(mixed_precision="fp16").encode(),
        task_source="x",
        device="cpu",
        task_folder=tmp_path,
        trackers=(),
    )
    with pytest.raises(DeviceError, match='"fp16" needs a CUDA device') as caught:
        prepare.read_task(given)
    assert caught.value.code == 9


def test_a_resolution_without_buckets_is_refused_before_anything_is_looked_for(tmp_path):
    task = text(transforms={"buckets": True}, train_args={"resolution": 520})
    given = SimpleNamespace(task_bytes=task.encode(), task_source="x", device="cpu", task_folder=tmp_path, trackers=())
    with pytest.raises(TaskError, match=r"resolution is 520: .* try 512 or 576") as caught:
        prepare.read_task(given)
    assert caught.value.code == 2


def test_a_file_of_prompts_lies_beside_the_task(tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt,width\na cat,96\n")
    task = text(validation={"prompts_file": "prompts.csv"})
    given = SimpleNamespace(task_bytes=task.encode(), task_source="x", device="cpu", task_folder=tmp_path, trackers=())
    assert prepare.read_task(given).validation.prompts == (Prompt(prompt="a cat", width=96),)
    (tmp_path / "prompts.csv").write_text("prompt,width\na cat,wide\n")
    with pytest.raises(TaskError, match=r"row 0 of prompts\.csv .*column width: got"):
        prepare.read_task(given)


BASE = SimpleNamespace(family=SPEC, config=None)
"""A base model as far as the dataset is opened for it."""


@pytest.mark.parametrize(
    ("looked_for", "error"),
    [("load_parent", CheckpointError), ("locating.locate", ModelError), ("open_dataset", DatasetError)],
)
def test_what_another_user_owns_is_said_to_be_unreadable(monkeypatch, tmp_path, looked_for, error):
    """`Path.is_file` and its like raise where a folder on the way is closed."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/home/else/thing")

    for name in ("load_parent", "locating.locate", "open_dataset"):
        found = refuse if name == looked_for else lambda *_, **__: BASE
        monkeypatch.setattr(f"engine.job.prepare.{name}", found)
    settings = SimpleNamespace(checkpoint=tmp_path, cache_dir=tmp_path, limits=None, task_folder=tmp_path)
    with pytest.raises(error, match=r"permission denied .*/home/else/thing"):
        prepare.prepare(settings, parse_task(text().encode(), source="task"), weights=False, say=print)


@pytest.mark.parametrize("key", ["model.name", "dataset.name", "validation.dataset.name"])
def test_a_misspelt_folder_is_told_before_the_hub(monkeypatch, tmp_path, key):
    """Where there is no network, it is the only thing to go by."""

    def ask(name, *_, **__):
        error = TemporaryError(f"{name}: the Hub could not be reached in 4 attempts; try later")
        error.hub_id = name
        raise error

    for name, function in (
        ("locating.locate", lambda wanted, **_: ask(wanted.name) if key == "model.name" else BASE),
        ("open_dataset", lambda wanted, *_, **__: ask(wanted.name) if key == "dataset.name" else None),
        ("hold_out", lambda wanted, *_, **__: ask(wanted.name)),
    ):
        monkeypatch.setattr(f"engine.job.prepare.{name}", function)
    (tmp_path / "my-images").mkdir()
    task = {"model": {"name": "m"}, "dataset": {"name": "d"}, "validation": {}, "train_args": {}}
    place, last = task, key.split(".")[-1]
    for part in key.split(".")[:-1]:
        place = place.setdefault(part, {})
    place[last] = "my-imagse"
    settings = SimpleNamespace(checkpoint=None, cache_dir=tmp_path, limits=None, task_folder=tmp_path)
    with pytest.raises(TemporaryError) as caught:
        prepare.prepare(settings, parse_task(json.dumps(task).encode(), source="t"), weights=False, say=print)
    assert str(caught.value) == (
        f"there is no folder {tmp_path}/my-imagse (did you mean my-images?), and on the Hub: my-imagse: the Hub could "
        "not be reached in 4 attempts; try later"
    )


class TestHeldOut:
    def test_a_hub_dataset_is_pinned_through_the_chain(self):
        found = {"name": "held/out", "revision": COMMIT}
        parent = {"heldout": found}

        def pinned(name, parent=parent):
            task = parse_task(text(validation={"dataset": {"name": name}}).encode(), source="t")
            return prepare._pinned_held_out(parent, task)

        assert (pinned("held/out"), pinned("another"), pinned("held/out", None)) == (COMMIT, None, None)
        for lie in (None, [], {"name": "held/out", "revision": "main"}, {"name": "held/out"}):
            assert pinned("held/out", {"heldout": lie}) is None
        assert pinned("held/out", {}) is None


class TestABranchThatMoves:
    """Only the first start of a job asks where a branch is."""

    FOUND = {"base_model": {"identity": f"m@{COMMIT}", "revision": COMMIT}, "revision": "main"}  # noqa: RUF012

    def settings(self, root, **more):
        return SimpleNamespace(output_dir=root, checkpoint=None, overwrite=False, **more)

    def test_the_commit_of_the_first_start_is_asked_for(self, monkeypatch, tmp_path):
        asked = []

        def locate(*_, pinned, **__):
            asked.append(pinned)
            raise ModelError("as far as it goes")

        monkeypatch.setattr("engine.job.prepare.locating.locate", locate)
        settings = self.settings(tmp_path, cache_dir=tmp_path, task_folder=tmp_path, limits=None)
        task = parse_task(text().encode(), source="task")
        for before in (None, self.FOUND, self.FOUND | {"revision": "v2"}):
            with pytest.raises(ModelError):
                prepare.prepare(settings, task, weights=False, say=print, before=before)
        assert asked == [None, COMMIT, None]

    def test_it_is_recorded_in_the_output_folder(self, tmp_path):
        settings, task = self.settings(tmp_path), parse_task(text().encode(), source="task")
        assert prepare.recorded(settings, task) is None
        with OutputFolder.lock(tmp_path) as output:
            output.claim(
                job_of().record, in_place=False, overwrite=False, request=request_digest(task, None), found=self.FOUND
            )
        found = prepare.recorded(settings, task)
        assert prepare._pinned_model(found, task) == COMMIT
        assert prepare.recorded(settings, parse_task(text(seed=5).encode(), source="task")) is None


@pytest.mark.parametrize(
    "recorded, expected",
    [
        ({"name": "a/vae", "branch": "main", "revision": COMMIT}, {"vae": COMMIT}),
        ({"name": "a/vae", "branch": "v2", "revision": COMMIT}, {}),
        ({"name": "a/other", "branch": "main", "revision": COMMIT}, {}),
        ({"name": "a/vae", "branch": "main", "revision": "main"}, {}),
        ("nonsense", {}),
    ],
)
def test_a_component_stays_at_its_commit_while_it_is_asked_for(recorded, expected):
    named = {"name": "m", "components": {"vae": {"name": "a/vae"}}}
    task = parse_task(text(model=named).encode(), source="test")
    assert prepare._pinned_components(before_of({"components": {"vae": recorded}}), task) == expected
    assert prepare._pinned_components(None, task) == {}

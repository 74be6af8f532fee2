"""From settings to a job: what identifies it, what must agree, what is pinned."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine import plan, prepare
from engine.checkpoint import Checkpoint, WarmStart
from engine.errors import DeviceError
from engine.task import Dataset, parse_task

COMMIT = "a" * 40


class Rows(list):
    """A dataset of so many rows."""

    fingerprint, revision = "f" * 64, None

    def __init__(self, count):
        super().__init__(range(count))
        self.num_images = count


def job_of(given=None, *, parent=None, base_revision=None, rows=10):
    task = parse_task((given or text()).encode(), source="test")
    return prepare.Job(
        task=task,
        base=SimpleNamespace(identity="sha256:model", revision=base_revision, variants={}),
        dataset=Rows(rows),
        parent=parent,
        in_place=False,
        schedule=plan.schedule(task.train_args, num_rows=rows, processes=1, start_step=0),
        prediction_type="epsilon",
    )


def parent_of(base_model=None, dataset=None, settings=None):
    manifest = {"base_model": base_model or {}, "dataset": dataset or {}}
    return SimpleNamespace(manifest=manifest, settings={"revision": "main"} if settings is None else settings)


def text(**extra):
    required = {"model": {"name": "m"}, "dataset": {"name": "d"}, "validation": {}, "train_args": {}}
    return json.dumps(required | extra)


class TestDigest:
    @pytest.mark.parametrize(
        "extra",
        [
            {"dataloader_num_workers": 3},
            {"version": "3.0.0"},
            {"checkpoint": "/c"},
            {"seed": 0},
            {"lora": {"alpha": None, "dropout": 0, "use_rslora": False}},
            {"train_args": {"train_text_encoder": False, "text_encoder_learning_rate": None}},
        ],
    )
    def test_does_not_depend_on_where_and_how_it_runs(self, extra):
        assert job_of(text(**extra)).task_digest == job_of().task_digest

    @pytest.mark.parametrize("extra", [{"seed": 1}, {"lora": {"rank": 4}}, {"validation": {"num_images": 1}}])
    def test_depends_on_what_is_asked_for(self, extra):
        assert job_of(text(**extra)).task_digest != job_of().task_digest

    def test_a_folder_counts_by_content_not_by_name(self):
        elsewhere = job_of(text(model={"name": "/other"}, dataset={"name": "/data"}))
        assert elsewhere.task_digest == job_of().task_digest
        on_hub = [job_of(text(model={"name": name}), base_revision=COMMIT).task_digest for name in ("a/b", "a/c")]
        assert on_hub[0] != on_hub[1]

    def test_the_record_names_the_parent(self):
        warm = WarmStart(digest="d", lora=b"")
        assert job_of(parent=warm).record.parent == "d" and job_of().record.parent is None


class TestAdapterOptions:
    @pytest.mark.parametrize(
        "extra, key, value",
        [
            ({"lora": {"alpha": 4}}, "alpha", 4.0),
            ({"lora": {"use_rslora": True}}, "use_rslora", True),
            ({"train_args": {"train_text_encoder": True}}, "train_text_encoder", True),
            ({"train_args": {"zero_terminal_snr": True}}, "zero_terminal_snr", True),
            ({"dataset": {"name": "d", "max_caption_tokens": 225}}, "max_caption_tokens", 225),
        ],
    )
    def test_what_the_weights_mean_belongs_to_the_world_where_set(self, extra, key, value):
        before, now = job_of().world, job_of(text(**extra)).world
        assert key not in before and now == before | {key: value}

    def test_an_alpha_that_is_the_rank_is_the_default(self):
        assert job_of(text(lora={"rank": 3, "alpha": 3})).world == job_of(text(lora={"rank": 3})).world

    @pytest.mark.parametrize(
        "extra, change",
        [
            ({"lora": {"dropout": 0.25}}, {"lora.dropout": [None, 0.25]}),
            (
                {"train_args": {"text_encoder_learning_rate": 0.5}},
                {"train_args.text_encoder_learning_rate": [None, 0.5]},
            ),
        ],
    )
    def test_how_they_are_trained_may_change_and_is_recorded(self, extra, change):
        before = job_of()
        given = {"settings": before.settings, "digest": "d", "global_step": 1}
        chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given)
        now = job_of(text(**extra), parent=chain)
        assert now.world == before.world and now.changed_settings() == change

    def test_the_text_encoders_rate_is_told_where_it_is_trained(self):
        args = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-5, "batch_size": 4}
        lines = described(train_args=args)
        assert "learning rate  0.0004, constant (0.0001 x 4 by scale_lr)" in lines
        assert "text encoder   4e-05, constant" in lines
        assert not any(line.startswith("text encoder") for line in described())

    def test_a_rate_without_anything_to_train_is_noted(self):
        (note,) = [line for line in described(train_args={"text_encoder_learning_rate": 1e-5}) if "note: " in line]
        assert note == "note: text_encoder_learning_rate has no effect without train_text_encoder"


def test_a_plan_shows_no_secrets_of_addresses():
    secret = "https://me:hidden@example.org/a.zip?token=hidden"
    job = job_of()
    task = replace(job.task, model=replace(job.task.model, name=secret), dataset=Dataset(url=secret))
    lines = prepare.describe(replace(job, task=task))
    assert "hidden" not in "".join(lines) and sum("https://example.org/a.zip?…" in line for line in lines) == 2


def described(**extra):
    return prepare.describe(job_of(text(**extra)))


def test_only_a_chains_own_commit_is_pinned():
    task = parse_task(text().encode(), source="test")
    pinned = prepare._pinned_model
    assert pinned(None, task) is None
    assert pinned(parent_of({"identity": f"m@{COMMIT}", "revision": COMMIT}), task) == COMMIT
    assert pinned(parent_of({"identity": f"other@{COMMIT}", "revision": COMMIT}), task) is None
    asked_otherwise = parent_of({"identity": f"m@{COMMIT}", "revision": COMMIT}, settings={"revision": "v2"})
    assert pinned(asked_otherwise, task) is None
    assert pinned(parent_of({"identity": "sha256:x", "revision": None}), task) is None


@pytest.mark.parametrize(
    "base", [{"identity": "m@None"}, {"identity": "m@5", "revision": 5}, {"identity": "m@None", "revision": None}]
)
def test_a_strangers_manifest_pins_nothing_but_a_commit(base):
    assert prepare._pinned_model(parent_of(base), parse_task(text().encode(), source="test")) is None


def test_in_place_is_the_same_folder_by_whatever_name(tmp_path):
    own = tmp_path / "out" / "checkpoint"
    assert prepare.is_in_place(own, tmp_path / "out") is False
    own.mkdir(parents=True)
    (tmp_path / "link").symlink_to(own)
    assert prepare.is_in_place(tmp_path / "link", tmp_path / "out")
    assert not prepare.is_in_place(tmp_path, tmp_path / "out") and not prepare.is_in_place(None, tmp_path / "out")


def test_fp16_on_a_cpu_is_a_device_error(tmp_path):
    given = SimpleNamespace(
        task_bytes=text(mixed_precision="fp16").encode(), task_source="x", device="cpu", task_folder=tmp_path
    )
    with pytest.raises(DeviceError, match='"fp16" needs a CUDA device') as caught:
        prepare.read_task(given)
    assert caught.value.code == 9


def test_changes_against_the_parent_are_found():
    now = job_of(text(train_args={"learning_rate": 0.5}))
    before = job_of()
    chain = Checkpoint(
        **dict.fromkeys(Checkpoint.__dataclass_fields__)
        | {"settings": before.settings, "digest": "d", "global_step": 1}
    )
    changed = job_of(text(train_args={"learning_rate": 0.5}), parent=chain).changed_settings()
    assert changed == {"train_args.learning_rate": [1e-4, 0.5]}
    assert now.changed_settings() == {} and now.world == before.world


def test_newer_keys_are_recorded_only_where_they_are_set():
    plain = job_of().settings
    assert "dataset" not in plain and not {"loss_type", "timestep_bias", "huber_c"} & set(plain["train_args"])
    dataset = {"name": "d", "caption_column": "words", "trigger_word": "sks", "caption_dropout": 0.1}
    bias = {"strategy": "later", "multiplier": 2}
    told = job_of(text(dataset=dataset, train_args={"timestep_bias": bias, "min_timestep": 3})).settings
    assert told["dataset"] == {"trigger_word": "sks", "caption_dropout": 0.1}
    assert told["train_args"]["min_timestep"] == 3 and told["train_args"]["timestep_bias"]["strategy"] == "later"
    assert "loss_type" not in told["train_args"]


def test_a_setting_that_is_left_out_later_has_changed_too():
    before = job_of(text(dataset={"name": "d", "trigger_word": "sks"}))
    chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | {"settings": before.settings, "digest": "d"})
    assert job_of(parent=chain).changed_settings() == {"dataset.trigger_word": ["sks", None]}
    assert before.task_digest != job_of().task_digest


def test_captions_of_one_row_are_the_default_and_their_length_is_no_setting():
    default = job_of()
    for tokens in (75, 150):
        job = job_of(text(dataset={"name": "d", "max_caption_tokens": tokens}))
        assert job.settings == default.settings and (job.world == default.world) == (tokens == 75)


@pytest.mark.parametrize("key", ["default_caption", "trigger_word", "mask_column", "max_caption_tokens"])
def test_a_new_key_at_its_default_is_no_other_task(key):
    assert job_of(text(dataset={"name": "d", key: None})).task_digest == job_of().task_digest

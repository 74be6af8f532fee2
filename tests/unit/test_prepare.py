"""From settings to a job: what identifies it, what must agree, what is pinned."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from engine import heldout, plan, prepare
from engine.buckets import Bucket, Buckets
from engine.checkpoint import Checkpoint, WarmStart
from engine.dataset.held_out import HeldOut
from engine.errors import CheckpointError, DatasetError, DeviceError, ModelError, TaskError
from engine.task import Dataset, parse_task

COMMIT = "a" * 40


class Rows(list):
    """A dataset of so many rows."""

    fingerprint, revision = "f" * 64, None

    def __init__(self, count):
        super().__init__(range(count))
        self.num_images = count


def held_out_of(fingerprint="e" * 64, revision=None, taken=0):
    return HeldOut(images=Rows(3), num_images=5, fingerprint=fingerprint, revision=revision, num_taken=taken)


def job_of(given=None, *, parent=None, base_revision=None, rows=10, held_out=None):
    task = parse_task((given or text()).encode(), source="test")
    return prepare.Job(
        task=task,
        base=SimpleNamespace(identity="sha256:model", revision=base_revision, variants={}, num_train_timesteps=1000),
        dataset=Rows(rows),
        parent=parent,
        in_place=False,
        schedule=plan.schedule(task.train_args, num_rows=rows, processes=1, start_step=0),
        prediction_type="epsilon",
        held_out=held_out,
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
            {"transforms": {"buckets": False}},
            {"train_args": {"gradient_checkpointing": True}},
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
            ({"transforms": {"buckets": True}}, "buckets", True),
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
            ({"validation": {"every_n_steps": 5}}, {"validation.every_n_steps": [None, 5]}),
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


def test_a_resolution_without_buckets_is_refused_before_anything_is_looked_for(tmp_path):
    task = text(transforms={"buckets": True}, train_args={"resolution": 520})
    given = SimpleNamespace(task_bytes=task.encode(), task_source="x", device="cpu", task_folder=tmp_path)
    with pytest.raises(TaskError, match=r"resolution is 520: .* try 512 or 576") as caught:
        prepare.read_task(given)
    assert caught.value.code == 2


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
    assert plain["transforms"] == {"center_crop": False, "random_flip": False}
    assert plain["validation"] == {"prompt": None, "num_images": 4}
    assert job_of(text(train_args={"gradient_checkpointing": True})).settings == plain
    assert "dataset" not in plain and not {"loss_type", "timestep_bias", "huber_c"} & set(plain["train_args"])
    dataset = {"name": "d", "caption_column": "words", "trigger_word": "sks", "caption_dropout": 0.1}
    bias = {"strategy": "later", "multiplier": 2}
    told = job_of(text(dataset=dataset, train_args={"timestep_bias": bias, "min_timestep": 3})).settings
    assert told["dataset"] == {"trigger_word": "sks", "caption_dropout": 0.1}
    assert told["train_args"]["min_timestep"] == 3 and told["train_args"]["timestep_bias"]["strategy"] == "later"
    assert "loss_type" not in told["train_args"]


def test_validation_is_recorded_as_before_and_what_is_set_beside():
    assert job_of().settings["validation"] == {"prompt": None, "num_images": 4}
    told = job_of(text(validation={"prompts": ["a", "b"], "seed": 0})).settings["validation"]
    assert told == {"prompt": None, "num_images": 4, "prompts": ["a", "b"], "seed": 0}


def test_more_denoising_steps_than_the_model_has_timesteps():
    job = job_of(text(validation={"num_inference_steps": 500}))
    prepare._check_validation(replace(job, base=SimpleNamespace(num_train_timesteps=501)))
    few = replace(job, base=SimpleNamespace(num_train_timesteps=500))
    with pytest.raises(TaskError, match="num_inference_steps is 500: expected fewer than the model's 500"):
        prepare._check_validation(few)


def test_the_plan_tells_what_is_made_in_between():
    steps = {"num_train_steps": 100, "max_train_steps": 1000}
    lines = described(train_args=steps, validation={"every_n_steps": 40}, checkpoint_every_n_steps=10)
    assert "images also    after step 40, 80" in lines
    assert "LoRAs kept     after step 10, 20, 30, …, 90; of the whole chain those of the latest 5 steps stay" in lines
    assert not any("images also" in line or "LoRAs kept" in line for line in described(train_args=steps))


def test_loras_that_are_kept_are_a_setting_where_they_are():
    assert not any(key.startswith("checkpoint") for key in job_of().settings)
    told = job_of(text(checkpoint_every_n_steps=7, checkpoint="/c")).settings
    assert {key: told[key] for key in told if key.startswith("checkpoint")} == {"checkpoint_every_n_steps": 7}
    assert "note: checkpoint_limit has no effect without checkpoint_every_n_steps" in described(checkpoint_limit=2)
    assert not any("checkpoint_limit" in line for line in described(checkpoint_limit=2, checkpoint_every_n_steps=1))


def test_a_negative_prompt_without_guidance_is_noted():
    lines = described(validation={"negative_prompt": "rain", "guidance_scale": 1})
    assert "note: validation.negative_prompt has no effect at a guidance_scale of up to 1" in lines
    assert not any("negative_prompt" in line for line in described(validation={"negative_prompt": "rain"}))


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


@pytest.mark.parametrize(
    ("looked_for", "error"),
    [("checkpoint.load", CheckpointError), ("model.locate", ModelError), ("open_dataset", DatasetError)],
)
def test_what_another_user_owns_is_said_to_be_unreadable(monkeypatch, tmp_path, looked_for, error):
    """`Path.is_file` and its like raise where a folder on the way is closed."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/home/else/thing")

    for name in ("checkpoint.load", "model.locate", "open_dataset"):
        monkeypatch.setattr(f"engine.prepare.{name}", refuse if name == looked_for else lambda *_, **__: None)
    settings = SimpleNamespace(checkpoint=tmp_path, cache_dir=tmp_path, limits=None)
    with pytest.raises(error, match=r"permission denied .*/home/else/thing"):
        prepare.prepare(settings, parse_task(text().encode(), source="task"), weights=False, report=print)


class TestHeldOut:
    FRACTION = text(validation={"dataset": {"fraction": 0.5}})
    FOLDER = text(validation={"dataset": {"name": "/held"}})

    def test_a_folder_counts_by_content_not_by_name(self):
        elsewhere = text(validation={"dataset": {"name": "/elsewhere"}})
        here = job_of(self.FOLDER, held_out=held_out_of())
        assert job_of(elsewhere, held_out=held_out_of()).task_digest == here.task_digest
        assert job_of(self.FOLDER, held_out=held_out_of("d" * 64)).task_digest != here.task_digest
        assert job_of(elsewhere, held_out=held_out_of(revision=COMMIT)).task_digest != here.task_digest
        assert here.task_digest != job_of().task_digest
        told = json.dumps(here.settings) + json.dumps(here.world)
        assert "/held" not in told and here.settings["validation"]["dataset"] == here.curve

    def test_what_is_taken_out_of_the_training_belongs_to_the_world(self):
        plain = job_of().world
        assert job_of(self.FOLDER, held_out=held_out_of()).world == plain
        assert job_of(self.FRACTION, held_out=held_out_of(taken=5)).world == plain | {"heldout_images": 5}

    @pytest.mark.parametrize(
        "changes",
        [
            {"train_args": {"max_timestep": 500}},
            {"train_args": {"min_timestep": 5}},
            {"dataset": {"name": "d", "trigger_word": "sks"}},
        ],
    )
    def test_what_changes_the_losses_begins_a_new_curve(self, changes):
        validation = {"validation": {"dataset": {"fraction": 0.5}}}
        assert job_of(text(**validation, **changes), held_out=held_out_of()).curve != self.curve()
        assert job_of(self.FRACTION, held_out=held_out_of("d" * 64)).curve != self.curve()

    def test_what_changes_the_training_alone_does_not(self):
        options = {"caption_dropout": 0.5, "shuffle_tags": True, "keep_tokens": 1, "repeats": 2, "alpha_mask": True}
        changes = {
            "dataset": {"name": "elsewhere", "mask_column": "m", **options},
            "train_args": {"learning_rate": 1, "snr_gamma": 5, "timestep_bias": {"strategy": "later", "multiplier": 2}},
            "validation": {"dataset": {"fraction": 0.5}, "every_n_steps": 3, "num_images": 1},
        }
        assert job_of(text(**changes), held_out=held_out_of()).curve == self.curve()

    def curve(self):
        return job_of(self.FRACTION, held_out=held_out_of()).curve

    def test_other_images_are_noted_not_refused(self):
        before = job_of(self.FOLDER, held_out=held_out_of())
        given = {"settings": before.settings, "digest": "d", "global_step": 1}
        chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given)
        now = job_of(self.FOLDER, parent=chain, held_out=held_out_of("d" * 64))
        assert now.changed_settings() == {"validation.dataset": [before.curve, now.curve]}
        assert now.world == before.world
        assert any("a new curve begins" in line for line in prepare.warnings(now))
        assert f"validation.dataset changes from '{before.curve}' to '{now.curve}' at step 0" in prepare.warnings(now)

    @pytest.mark.parametrize(
        "validation, held_out, expected",
        [
            (
                {"fraction": 0.5},
                {"taken": 5},
                "of 3 of 5 images taken out of the dataset, before and after this task: 2 times 12 forward passes",
            ),
            (
                {"name": "x"},
                {},
                "of 3 of 5 images, before and after this task: 2 times 12 forward passes",
            ),
        ],
    )
    def test_the_plan_says_what_is_measured_and_when(self, validation, held_out, expected):
        job = job_of(text(validation={"dataset": validation}), held_out=held_out_of(**held_out))
        (line,) = [line for line in prepare.describe(job) if line.startswith("held-out loss")]
        assert line == f"held-out loss  {expected}"
        assert not any(line.startswith("held-out") for line in prepare.describe(job_of()))

    def test_a_configuration_of_nothing_is_noted(self):
        for source, noted in (({"fraction": 0.5}, True), ({"split": "x"}, True), ({"name": "x"}, False)):
            job = job_of(text(validation={"dataset": {**source, "config_name": "c"}}), held_out=held_out_of())
            assert any("config_name has no effect" in line for line in prepare.warnings(job)) is noted

    def test_the_plan_knows_what_is_measured_already(self):
        job = job_of(text(validation={"dataset": {"split": "test"}, "every_n_steps": 4}), held_out=held_out_of())
        rows = heldout.dump([heldout.Row(4, 0.5, (0.5,), 3, job.curve)])
        given = {"settings": job.settings, "digest": "d", "global_step": 4, "heldout": rows}
        chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given)
        job = replace(job, parent=chain, schedule=replace(job.schedule, start_step=4, stop_step=10, max_steps=20))
        (line,) = [line for line in prepare.describe(job) if line.startswith("held-out loss")]
        assert line.endswith(", before and after this task, every 4 steps: 2 times 12 forward passes")  # after 8 and 10

    def test_a_hub_dataset_is_pinned_through_the_chain(self):
        found = {"name": "held/out", "revision": COMMIT}
        parent = SimpleNamespace(manifest={"heldout": found})

        def pinned(name, parent=parent):
            task = parse_task(text(validation={"dataset": {"name": name}}).encode(), source="t")
            return prepare._pinned_held_out(parent, task)

        assert (pinned("held/out"), pinned("another"), pinned("held/out", None)) == (COMMIT, None, None)
        for lie in (None, [], {"name": "held/out", "revision": "main"}, {"name": "held/out"}):
            assert pinned("held/out", SimpleNamespace(manifest={"heldout": lie})) is None
        assert pinned("held/out", SimpleNamespace(manifest={})) is None


def test_a_plan_tells_of_the_buckets():
    rows = [Bucket((64, 256), np.arange(6), 6), Bucket((128, 128), np.arange(6, 10), 4)]
    found = Buckets(sizes=(), members=tuple(rows), kept=0.9, kept_by_squares=0.5)
    lines = prepare.describe(replace(job_of(text(train_args={"batch_size": 5})), buckets=found))
    assert "buckets        64 x 256: 6, 128 x 128: 4 images" in lines
    assert lines[-1].startswith("note: 1 of 2 buckets have fewer images than batch_size 5")
    assert not any(line.startswith("buckets") for line in described())

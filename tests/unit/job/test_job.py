"""What identifies a job, and what the tasks of a chain must agree on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.core.errors import CheckpointError
from engine.job import job as jobs
from engine.models.spec import DrawingDefaults
from engine.results.checkpoint import Checkpoint
from engine.task.plan.extent import Extent
from engine.task.task import TrainArgs
from engine.training.buckets import Buckets
from engine.training.methods.warm_start import WarmStart
from tests.support.jobs import COMMIT, FLOW_SPEC, held_out_of, job_of, text


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
            {"model": {"name": "m", "components": {}}},
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
        warm = WarmStart(folder=Path("f"), digest="d", hashes={"x": "h"})
        assert job_of(parent=warm).record.parent == "d" and job_of().record.parent is None


def test_changes_against_the_parent_are_found():
    now = job_of(text(train_args={"learning_rate": 0.5}))
    before = job_of()
    chain = Checkpoint(
        **dict.fromkeys(Checkpoint.__dataclass_fields__)
        | {"settings": before.recorded_settings, "digest": "d", "global_step": 1}
    )
    changed = job_of(text(train_args={"learning_rate": 0.5}), parent=chain).changed_settings()
    assert changed == {"train_args.learning_rate": [1e-4, 0.5]}
    assert now.changed_settings() == {} and now.invariants == before.invariants


def test_newer_keys_are_recorded_only_where_they_are_set():
    plain = job_of().recorded_settings
    assert plain["transforms"] == {"center_crop": False, "random_flip": False}
    assert plain["validation"] == {"prompt": None, "num_images": 4}
    assert job_of(text(train_args={"gradient_checkpointing": True})).recorded_settings == plain
    assert "dataset" not in plain and not {"loss_type", "timestep_bias", "huber_c"} & set(plain["train_args"])
    dataset = {"name": "d", "caption_column": "words", "trigger_word": "sks", "caption_dropout": 0.1}
    bias = {"strategy": "later", "multiplier": 2}
    told = job_of(text(dataset=dataset, train_args={"timestep_bias": bias, "min_timestep": 3})).recorded_settings
    assert told["dataset"] == {"trigger_word": "sks", "caption_dropout": 0.1}
    assert told["train_args"]["min_timestep"] == 3 and told["train_args"]["timestep_bias"]["strategy"] == "later"
    assert "loss_type" not in told["train_args"]


def test_validation_is_recorded_as_before_and_what_is_set_beside():
    assert job_of().recorded_settings["validation"] == {"prompt": None, "num_images": 4}
    told = job_of(text(validation={"prompts": ["a", "b"], "seed": 0})).recorded_settings["validation"]
    assert told == {"prompt": None, "num_images": 4, "prompts": ["a", "b"], "seed": 0}


def test_a_setting_that_is_left_out_later_has_changed_too():
    before = job_of(text(dataset={"name": "d", "trigger_word": "sks"}))
    given = {"settings": before.recorded_settings, "digest": "d"}
    chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given)
    assert job_of(parent=chain).changed_settings() == {"dataset.trigger_word": ["sks", None]}
    assert before.task_digest != job_of().task_digest


def test_captions_of_one_row_are_the_default_and_their_length_is_no_setting():
    default = job_of()
    for tokens in (75, 150):
        job = job_of(text(dataset={"name": "d", "max_caption_tokens": tokens}))
        assert job.recorded_settings == default.recorded_settings
        assert (job.invariants == default.invariants) == (tokens == 75)


@pytest.mark.parametrize("wanted, found", [(None, None), (512, None), (77, 77)])
def test_captions_of_another_length_belong_to_the_world_whatever_the_family(wanted, found):
    job = job_of(text(dataset={"name": "d", "max_caption_tokens": wanted}), family=FLOW_SPEC)
    assert job.caption_tokens == (wanted or 512) and job.invariants.get("max_caption_tokens") == found


FLOW_KEYS = {
    "timestep_sampling": "uniform",
    "logit_mean": 0.5,
    "logit_std": 0.5,
    "mode_scale": 1.0,
    "flow_shift": "resolution",
    "guidance_scale": 3.5,
}


@pytest.mark.parametrize("key, value", FLOW_KEYS.items())
def test_a_flow_key_is_another_task_whose_change_is_told(key, value):
    default, other = (job_of(text(train_args=args), family=FLOW_SPEC) for args in ({}, {key: value}))
    assert other.task_digest != default.task_digest and other.invariants == default.invariants
    given = {"settings": default.recorded_settings, "digest": "d"}
    chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given)
    assert replace(other, parent=chain).changed_settings() == {f"train_args.{key}": [None, value]}
    plain = job_of(text(train_args={key: getattr(TrainArgs(), key)}), family=FLOW_SPEC)
    assert plain.task_digest == default.task_digest and plain.recorded_settings == default.recorded_settings


def test_images_are_drawn_as_is_usual_for_the_family_where_the_task_does_not_say():
    given = text(validation={"num_inference_steps": 9})
    assert job_of(given, family=FLOW_SPEC).drawing == DrawingDefaults(guidance_scale=3.5, num_inference_steps=9)
    assert job_of().drawing == DrawingDefaults(guidance_scale=7.5, num_inference_steps=30)


@pytest.mark.parametrize("key", ["default_caption", "trigger_word", "mask_column", "max_caption_tokens"])
def test_a_new_key_at_its_default_is_no_other_task(key):
    assert job_of(text(dataset={"name": "d", key: None})).task_digest == job_of().task_digest


def test_lines_of_captions_are_told_by_the_fingerprint_alone():
    default, named, joined = (
        job_of(text(dataset={"name": "d"} | extra))
        for extra in ({}, {"caption_lines": "captions"}, {"caption_lines": "joined"})
    )
    assert named.task_digest == default.task_digest != joined.task_digest
    assert named.recorded_settings == joined.recorded_settings == default.recorded_settings
    assert joined.invariants == default.invariants
    assert "caption_lines" not in repr(default.recorded_settings)


class TestHeldOut:
    FRACTION = text(validation={"dataset": {"fraction": 0.5}})
    FOLDER = text(validation={"dataset": {"name": "/held"}})

    def test_a_folder_counts_by_content_not_by_name(self):
        elsewhere = text(validation={"dataset": {"name": "/elsewhere"}})
        here = job_of(self.FOLDER, held_out=held_out_of())
        assert job_of(elsewhere, held_out=held_out_of()).task_digest == here.task_digest
        assert job_of(self.FOLDER, held_out=held_out_of("d" * 64)).task_digest != here.task_digest
        split = text(validation={"dataset": {"split": "test"}})
        digests = {job_of(split, held_out=held_out_of(digest * 64)).task_digest for digest in "cd"}
        assert len(digests) == 2
        assert job_of(elsewhere, held_out=held_out_of(revision=COMMIT)).task_digest != here.task_digest
        assert here.task_digest != job_of().task_digest
        told = json.dumps(here.recorded_settings) + json.dumps(here.invariants)
        assert "/held" not in told and here.recorded_settings["validation"]["dataset"] == here.curve

    @pytest.mark.parametrize("key, value", FLOW_KEYS.items())
    def test_other_noise_levels_are_another_curve_other_frequencies_are_not(self, key, value):
        curves = [
            job_of(self.with_args(args), held_out=held_out_of(), family=FLOW_SPEC).curve for args in ({}, {key: value})
        ]
        assert (curves[0] != curves[1]) == (key in ("flow_shift", "guidance_scale"))

    def with_args(self, args):
        return text(validation={"dataset": {"fraction": 0.5}}, train_args=args)

    def test_what_is_taken_out_of_the_training_belongs_to_the_world(self):
        plain = job_of().invariants
        assert job_of(self.FOLDER, held_out=held_out_of()).invariants == plain
        assert job_of(self.FRACTION, held_out=held_out_of(taken=5)).invariants == plain | {"heldout_images": 5}

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

    def test_with_buckets_clips_are_measured_with_as_many_frames_as_they_have(self):
        job = job_of(self.with_args({"resolution": 64, "num_frames": 17}), held_out=held_out_of())
        assert job.measured_at(Extent(100, 50, 5)) == (64, 64, 17)
        images, clips = (
            replace(job, buckets=Buckets(sizes=(), frame_counts=counts, members=(), kept=1.0, kept_by_squares=1.0))
            for counts in ((1,), (1, 9, 17))
        )
        assert [clips.measured_at(Extent(100, 50, frames)) for frames in (1, 8, 9, 30)] == [
            (64, 64, 1),
            (64, 64, 1),
            (64, 64, 9),
            (64, 64, 17),
        ]
        assert images.curve == job.curve != clips.curve

    def curve(self):
        return job_of(self.FRACTION, held_out=held_out_of()).curve


WORLD = {"base_model": "m@1", "rank": 8, "seed": 0}


def require_same_invariants(found, expected, **rows):
    jobs.require_same_invariants(found, expected, main_file="weights.safetensors", **rows)


class TestSameWorld:
    def test_the_same_is_accepted(self):
        require_same_invariants(WORLD, WORLD)

    @pytest.mark.parametrize("theirs, ours", [({"alpha": 4.0}, {}), ({}, {"alpha": 4.0})])
    def test_what_only_one_of_them_says_differs(self, theirs, ours):
        default = "at its default"
        said = f"alpha is {theirs.get('alpha', default)} in the checkpoint, {ours.get('alpha', default)} in this task"
        with pytest.raises(CheckpointError, match=said):
            require_same_invariants(WORLD | theirs, WORLD | ours)

    def test_each_difference_is_named_with_both_values(self):
        with pytest.raises(CheckpointError) as caught:
            require_same_invariants(WORLD, WORLD | {"rank": 16, "seed": 5})
        for part in ("rank is 8 in the checkpoint, 16 in this task", "seed is 0 in the checkpoint, 5 in this task"):
            assert part in str(caught.value)
        assert "base_model" not in str(caught.value) and caught.value.code == 5

    def test_what_is_missing_differs(self):
        with pytest.raises(CheckpointError, match="rank is at its default in the checkpoint, 8 in this task"):
            require_same_invariants({k: v for k, v in WORLD.items() if k != "rank"}, WORLD)

    def test_another_dataset_is_told_by_what_it_means(self):
        theirs, ours = {"dataset": "a" * 64}, {"dataset": "b" * 64}
        for rows, counted in (((13, 14), r" \(13 rows then, 14 now\)"), ((None, 14), r" \(14 rows now\)")):
            said = f"images or captions have changed since{counted}; .*only its weights.safetensors"
            with pytest.raises(CheckpointError, match=said):
                require_same_invariants(WORLD | theirs, WORLD | ours, rows=rows)

    def test_the_number_of_micro_batches_is_told_by_its_words(self):
        said = "K, the number of processes times gradient_accumulation_steps, is 2 in the checkpoint, 1 in this task"
        with pytest.raises(CheckpointError, match=said):
            require_same_invariants(WORLD | {"micro_batches": 2}, WORLD | {"micro_batches": 1})

    def test_the_records_world_is_all_that_the_bytes_depend_on(self):
        record = job_of(text(validation={"dataset": {"fraction": 0.5}}), held_out=held_out_of()).record
        assert record.invariants["micro_batches"] == 1 and record.invariants["dataset"] == "f" * 64 and record.curve
        assert (record.rows, record.max_steps) == (10, 1)


class TestComponents:
    """A part of the base model from elsewhere counts by its commit, or by its content where it is local."""

    def job(self, name, *, identity="sha256:v", revision=None):
        job = job_of(text(model={"name": "m", "components": {"vae": {"name": name}}}))
        found = SimpleNamespace(identity=identity, revision=revision, resolved={"identity": identity})
        base = SimpleNamespace(**vars(job.base) | {"elsewhere": {"vae": found}, "identities": {"vae": identity}})
        return replace(job, base=base)

    def test_a_local_one_by_its_content(self):
        one, two = self.job("/a"), self.job("/b")
        assert one.identified_task["model"]["components"] == {"vae": {"name": "sha256:v"}}
        assert one.task_digest == two.task_digest != self.job("/a", identity="sha256:w").task_digest
        assert self.job("a/b", revision=COMMIT).identified_task["model"]["components"] == {"vae": {"name": "a/b"}}

    def test_a_chain_agrees_on_it(self):
        found = self.job("/a")
        assert found.invariants == job_of().invariants | {"components": {"vae": "sha256:v"}}
        assert found.resolved["base_model"]["components"] == {"vae": {"identity": "sha256:v"}}
        with pytest.raises(CheckpointError, match="components is"):
            jobs.require_same_invariants(found.invariants, job_of().invariants, main_file="x")

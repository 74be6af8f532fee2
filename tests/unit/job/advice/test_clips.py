"""What --plan, the log and result.json say of a dataset of clips."""

import re
from dataclasses import replace
from fractions import Fraction

import pytest

from engine.core.errors import DatasetError
from engine.data.media.clip_facts import ClipFacts
from engine.job.advice.clip_notes import lines, notes
from engine.job.advice.clips import Survey
from engine.models.families.sd.spec import SPEC
from engine.task.plan.extent import frame_counts
from engine.training.buckets import sort_into_buckets
from tests.support.jobs import Rows, job_of, text

VIDEO = replace(SPEC, medium="video", frame_step=8, frame_rate=25)
PAL = Fraction(25)


def clip(frames, rate=PAL, *, file_frames=None, codec="H.264", **facts):
    return ClipFacts(
        width=64,
        height=64,
        frames=frames,
        file_frames=file_frames or frames,
        file_rate=None if rate is None else Fraction(rate),
        codec=codec,
        **facts,
    )


STILL = clip(1, None, codec="")


class Named(Rows):
    def name(self, index):
        return f"{index}.mp4"

    def image_indices(self):
        return range(len(self))

    def image_index(self, index):
        return index


def survey(*clips, buckets=False, num_frames=17, **dataset):
    job = job_of(
        text(dataset={"name": "d"} | dataset, train_args={"num_frames": num_frames, "resolution": 64}), family=VIDEO
    )
    job = replace(job, clips=clips, dataset=Named(len(clips)))
    if buckets:
        extents = [one.extent for one in clips]
        job = replace(job, buckets=sort_into_buckets(job.dataset, extents, 128, frame_counts(num_frames, 8)))
    return Survey.of(job)


def test_samples_without_frames_have_no_survey():
    assert Survey.of(job_of()) is None


def test_whole_clips_of_the_usual_rate_need_no_note():
    found = survey(clip(17), clip(17, Fraction(2501, 100)))
    assert notes(found) == []
    assert lines(found) == [
        "clips          2 clips, 17 frames; each visit shows 17 frames",
        "frame rates    25: 2",
        "codecs         H.264 2",
    ]
    assert {name: count for name, count in found.counts().items() if count} == {"clips": 2, "frames": 34}


def test_what_clips_are():
    found = survey(clip(17), clip(40, 24, codec="AV1", is_turned=True), STILL, clip(20, 30, has_variable_rate=True))
    assert lines(found) == [
        "clips          3 clips and 1 image, 17 to 40 frames; each visit shows 17 frames",
        "frame rates    25: 1, 24: 1, variable: 1",
        "codecs         AV1 1, H.264 2",
        "turned         1 as their files say: 1.mp4",
    ]


NOTES = {
    "unreadable": (
        survey(clip(17), "it is cut", "it is cut"),
        {"unreadable": 2},
        "2 clips cannot be read and are skipped: 1.mp4 (it is cut), 2.mp4 (it is cut)",
    ),
    "too short": (
        survey(clip(17), clip(16), STILL),
        {"too_short": 2, "images": 1},
        "2 of 3 clips are skipped, with fewer frames than train_args.num_frames 17: 1.mp4 (16 frames), "
        "2.mp4 (an image); transforms.buckets would train each with as many as it has",
    ),
    "shorter buckets": (
        survey(clip(17), clip(9), clip(8), STILL, buckets=True, frame_extraction="random"),
        {"shortened": 3, "too_short": 0},
        "2 clips with fewer frames than train_args.num_frames 17 are trained with fewer: "
        "1 with 9 frames, 1 with 1 frame",
    ),
    "another rate": (
        survey(clip(17), clip(17, 12), clip(17, 50)),
        {"of_other_rate": 2},
        "2 of 3 clips have 12 to 50 frames a second where this model was trained on 25, so it would learn motion that "
        "is too fast or too slow: set dataset.frame_rate to 25 to resample them",
    ),
    "frames dropped": (
        survey(clip(17), clip(17, 50, file_frames=34), frame_rate=25),
        {"resampled": 1, "of_other_rate": 0},
        "1 of 2 clips of 50 frames a second is resampled to 25, which drops 50% of their frames",
    ),
    "frames repeated": (
        survey(clip(17), clip(20, 12, file_frames=10), frame_rate=25, frame_extraction="random"),
        {"resampled": 1},
        "1 of 2 clips of 12 frames a second is resampled to 25: 50% of their frames are repeated ones, so motion is "
        "jerky",
    ),
    "a rate that is not the model's": (
        survey(clip(17), frame_rate=10),
        {"resampled": 0},
        "dataset.frame_rate is 10, and 25 is usual for this model: what is drawn and then played at 25 frames a second "
        "moves 2.5 times as fast as the clips",
    ),
    "nearly the model's rate": (
        survey(clip(17), frame_rate=23.976),
        {"resampled": 0},
        "dataset.frame_rate is 23.976, and 25 is usual for this model: what is drawn and then played at 25 frames a "
        "second moves 1.043 times as fast as the clips",
    ),
    "variable rate": (
        survey(clip(17, has_variable_rate=True)),
        {"variable_rate": 1},
        "1 clip has a variable frame rate, and the frames are shown at equal intervals: set dataset.frame_rate to go "
        "by their times: 0.mp4",
    ),
    "head": (
        survey(clip(17), clip(34), clip(68)),
        {"frames_never_shown": 17 + 51},
        "of 2 clips the frames after the first ones are never shown by frame_extraction head: 50% to 75% of each, "
        "most of 2.mp4 (68 frames); random shows all of them, chunk all but a remainder shorter than a visit",
    ),
    "chunk": (
        survey(clip(34), clip(40), frame_extraction="chunk"),
        {"frames_never_shown": 6},
        "of 1 clip the frames after the last whole piece are never shown by frame_extraction chunk: 15% of each, most "
        "of 1.mp4 (40 frames)",
    ),
    "uniform": (
        survey(clip(17), clip(33), clip(65), frame_extraction="uniform"),
        {"sped_up": 2},
        "2 clips are shown faster than they are by frame_extraction uniform: 3.0 times on average, up to 4.0 times",
    ),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_is_not_shown_as_it_is_is_told_and_counted(case):
    found, counts, note = NOTES[case]
    assert notes(found) == [note]
    assert {name: found.counts()[name] for name in counts} == counts


def test_a_single_frame_of_each_clip_is_probably_not_meant():
    (note,) = notes(survey(clip(9), clip(30), clip(50), num_frames=1))
    assert note.startswith("train_args.num_frames is 1, so a single frame") and "such as 25, which half of" in note
    assert notes(survey(STILL, STILL, num_frames=1)) == []


def test_clips_of_variable_rate_are_resampled_by_their_times():
    assert notes(survey(clip(17, has_variable_rate=True), frame_rate=25)) == []


def test_a_dataset_of_too_short_clips_is_refused_before_the_training():
    with pytest.raises(DatasetError, match=re.escape("none of the 2 clips has the 17 frames of train_args.num_frames")):
        survey(clip(16), STILL).require_some()
    survey(clip(16), STILL, buckets=True).require_some()
    survey("broken").require_some()  # the training says so

"""Which subjects the base and the LoRA see, in which style and under which words."""

import json
from pathlib import Path

from assets import prepare_data

DATASETS = prepare_data.ASSETS / "datasets"


def names_in(folder: Path) -> set[str]:
    texts = [json.loads(line)["text"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return {text if isinstance(text, str) else text[0] for text in texts}


def test_the_captions_of_both_styles_begin_alike():
    assert prepare_data.caption("owl") == "an owl emoji"
    assert prepare_data.high_contrast_caption("owl") == "an owl emoji, line drawing"
    assert prepare_data.caption("frog") == "a frog emoji"


def test_no_subject_is_in_two_parts():
    parts = prepare_data.split(367)
    assert [len(part) for part in parts] == [192, 32, 32]
    assert len(set().union(*parts)) == 256


def test_the_datasets_are_the_split():
    subjects = prepare_data.read_subjects()
    train, held_out, unseen = (
        {prepare_data.caption(subjects[n]) for n in part} for part in prepare_data.split(len(subjects))
    )
    assert names_in(DATASETS / "emoji-high-contrast") == train
    assert names_in(DATASETS / "emoji-high-contrast-heldout") == held_out
    rows = prepare_data.subject_rows(subjects)
    assert {row["caption"] for row in rows if row["unseen"]} == unseen
    assert [row["name"] for row in rows] == subjects

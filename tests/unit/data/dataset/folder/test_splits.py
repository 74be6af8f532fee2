"""Which files belong to which split."""

import pytest

from engine.core.errors import DatasetError
from engine.data.dataset.folder.splits import (
    by_split,
    choose_named_split,
    choose_split,
    files_of_split,
    split_of_folder,
    split_of_image,
    split_of_table,
)

WORDS = {
    "train": ["train", "training"],
    "validation": ["validation", "valid", "val", "dev"],
    "test": ["test", "testing", "eval", "evaluation"],
}
KIN = [(word, split) for split, words in WORDS.items() for word in words]


@pytest.mark.parametrize("word, split", KIN)
def test_a_word_means_the_same_split_for_tables_and_images(word, split):
    assert split_of_folder(f"a/{word}/metadata.jsonl") == split
    assert split_of_table(f"{word}.parquet") == split_of_table(f"data/{word}-00000-of-00002.parquet") == split
    assert split_of_image(f"a/{word}/b.png") == split
    assert choose_named_split(["train", "validation", "test"], "d", word) == split


def test_words_are_found_in_names_of_tables_but_folders_of_images_are_somebodys():
    assert split_of_table("my-test_0/a.csv") == split_of_table("cats.test.csv") == "test"
    assert split_of_table("data/extra-00000-of-00001.parquet") == "extra"
    assert split_of_table("latest.csv") is None
    assert split_of_image("5_test/a.png") is split_of_image("test shots/a.png") is split_of_image("test.png") is None


@pytest.mark.parametrize(
    "files, expected, expected_of_rest",
    [
        (["a", "b"], {"train": ["a", "b"]}, None),
        (["a", "test/b"], {"test": ["test/b"]}, {"train": ["a"], "test": ["test/b"]}),
        (["a", "test/b", "train/c"], {"train": ["train/c"], "test": ["test/b"]}, None),
    ],
)
def test_files_that_name_no_split(files, expected, expected_of_rest):
    assert by_split(files, split_of_image, rest_is_train=False) == expected
    assert by_split(files, split_of_image, rest_is_train=True) == (expected_of_rest or expected)


def test_the_split_that_is_read():
    files = ["test/a", "b"]
    for wanted, chosen in ((None, ["b"]), ("train", ["b"]), ("eval", ["test/a"])):
        assert files_of_split(files, split_of_image, "d", wanted, rest_is_train=True) == chosen
    assert files_of_split(files, split_of_image, "d", None, rest_is_train=False) == ["test/a"]
    with pytest.raises(
        DatasetError, match=r"^d has no split 'x' \(validation\.dataset\.split\); its splits: test, train$"
    ):
        files_of_split(files, split_of_image, "d", "x", rest_is_train=True)
    with pytest.raises(DatasetError, match=r"^d has no split 'train', and several others: a, b$"):
        choose_split(["b", "a"], "d")

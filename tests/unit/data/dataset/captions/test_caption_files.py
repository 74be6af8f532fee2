"""Captions in folders' names, in text of several lines and in broken text."""

import os

import pytest

from engine.core.errors import DatasetError
from engine.data.dataset.captions import caption_files
from engine.data.dataset.open import MAX_EPOCH_VISITS
from tests.support.caption_folders import images, opened, rows, write


def test_captions_go_by_the_same_spelling_first(folder, tmp_path):
    names = ("cafe\u0301", "caf\u00e9")
    texts = {f"{name}.txt": str(index) for index, name in enumerate(names)}
    write(folder, images(*(f"{name}.png" for name in names)) | texts)
    assert set(rows(opened(folder, tmp_path))) == {("cafe\u0301.png", ("0",)), ("caf\u00e9.png", ("1",))}


def test_a_folder_of_images_to_be_visited_no_time_says_so(folder, tmp_path):
    write(folder, images("0_no/0.png"))
    with pytest.raises(
        DatasetError, match="nothing to train on: 1 image is not used, its folder's name asks for 0 repeats: 0_no/0"
    ):
        opened(folder, tmp_path)


def test_kohyas_folders_repeat_and_name(folder, tmp_path):
    files = images("10_sks dog/a.png", "10_sks dog/b.png", "3_style/deep/c.png", "2024_summer/d.png", "0_no/e.png")
    write(folder, files | {"10_sks dog/a.txt": "own", "2024_summer/d.txt": "a year"})
    said = []
    dataset = opened(folder, tmp_path, said=said)
    assert len(dataset) == 2 * 10 + 3 + 1 and dataset.num_images == 4
    dogs = [("10_sks dog/a.png", ("own",)), ("10_sks dog/b.png", ("sks dog",))]
    assert rows(dataset) == dogs * 10 + [("2024_summer/d.png", ("a year",))] + [("3_style/deep/c.png", ("style",))] * 3
    assert [dataset.image_index(i) for i in (0, 1, 2, 19, 20, 21, 23)] == [0, 1, 0, 1, 20, 21, 21]
    assert list(dataset.image_indices()) == [0, 1, 20, 21]
    assert dataset.caption_rules == {"a .txt file beside the image": 2, "the folder's name": 2}
    assert any("0_no/e.png" in line for line in said)


def test_repeats_multiply_and_are_part_of_the_fingerprint(folder, tmp_path):
    write(folder, images("a.png", "2_x/b.png") | {"a.txt": "one"})
    plain, thrice = opened(folder, tmp_path), opened(folder, tmp_path, repeats=3)
    assert (len(plain), len(thrice), thrice.num_images) == (3, 9, 2)
    (folder / "2_x").rename(folder / "1_x")
    once = opened(folder, tmp_path)
    assert len({plain.fingerprint, thrice.fingerprint, once.fingerprint}) == 3
    (folder / "b.txt").write_text("x")  # the same rows, said in another way
    (folder / "1_x/b.png").rename(folder / "0.png")
    (folder / "b.txt").rename(folder / "0.txt")
    assert opened(folder, tmp_path).fingerprint == once.fingerprint


def test_the_dataset_folders_own_name_says_nothing(tmp_path):
    found = []
    for name in ("10_sks", "plain"):
        write(tmp_path / name, images("a.png") | {"a.txt": "one"})
        found.append(opened(tmp_path / name, tmp_path))
    assert [len(dataset) for dataset in found] == [1, 1]
    assert found[0].fingerprint == found[1].fingerprint


def test_a_name_cannot_ask_for_endless_repeats(folder, tmp_path, monkeypatch):
    write(folder, images("999_x/a.png"))
    assert len(opened(folder, tmp_path, repeats=10_000)) == 9_990_000 < MAX_EPOCH_VISITS
    monkeypatch.setattr("engine.data.dataset.open.MAX_EPOCH_VISITS", 1000)
    with pytest.raises(DatasetError, match="an epoch of the dataset has 1,998 visits"):
        opened(folder, tmp_path, repeats=2)


@pytest.mark.parametrize(
    "data, reason",
    [
        ("ein grünes Quadrat".encode("latin-1"), "not UTF-8: byte 0xfc at 6"),
        ("text".encode("utf-16"), "UTF-16"),
        ("text".encode("utf-16-be"), "NUL"),
        (b"x" * (caption_files.MAX_FILE_BYTES + 1), "65,537 bytes"),
    ],
)
def test_what_is_no_utf8_text_is_refused_by_name(folder, tmp_path, data, reason):
    write(folder, images("a.png", "b.png") | {"a.txt": "one", "b.txt": data})
    with pytest.raises(DatasetError, match=rf"1 caption file cannot be read; .*UTF-8.*b\.txt.*{reason}"):
        opened(folder, tmp_path)


def test_many_bad_captions_are_one_line(folder, tmp_path):
    names = [f"{k}.png" for k in range(5)]
    write(folder, images(*names) | {f"{k}.txt": b"\xe9" for k in range(5)})
    with pytest.raises(DatasetError, match=r"5 caption files.*0\.txt.*2\.txt.* and 2 more") as caught:
        opened(folder, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pipe_or_a_huge_file_is_not_waited_for(folder, tmp_path):
    write(folder, images("a.png"))
    os.mkfifo(folder / "a.txt")
    with pytest.raises(DatasetError, match=r"a\.txt \(it is not a file\)"):
        opened(folder, tmp_path)
    (folder / "a.txt").unlink()
    with (folder / "a.txt").open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(DatasetError, match="1,099,511,627,776 bytes"):
        opened(folder, tmp_path)
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to("/proc/self/status")  # a file without a size
    with pytest.raises(DatasetError, match="longer than its size"):
        opened(folder, tmp_path)


class TestSeveralLines:
    TEXT = "A red house.\n\n  The light comes from the left. \r\n\nTrees.\n\n"

    def test_are_several_captions_and_said(self, folder, tmp_path):
        write(
            folder, images("a.png", "b.png", "c.png") | {"a.txt": "one\n\n", "b.txt": self.TEXT, "c.txt": "x\ny\nz\nw"}
        )
        said = []
        assert rows(opened(folder, tmp_path, said=said))[1][1] == (
            "A red house.",
            "The light comes from the left.",
            "Trees.",
        )
        assert said == [
            "dataset: 1 text file has blank lines between paragraphs, and each line is taken as a caption of its own; "
            'set dataset.caption_lines to "joined" to make each file one caption: b.txt',
            "dataset: 2 images have several captions (up to 4), of which each visit draws one; "
            "b.png: 'A red house.', 'The light comes from the left.', 'Trees.'",
        ]

    def test_joined(self, folder, tmp_path):
        write(folder, images("a.png", "b.png") | {"a.txt": "one", "b.txt": self.TEXT})
        said = []
        dataset = opened(folder, tmp_path, said=said, caption_lines="joined")
        assert rows(dataset) == [
            ("a.png", ("one",)),
            ("b.png", ("A red house. The light comes from the left. Trees.",)),
        ]
        assert said == []
        (folder / "b.txt").write_text("A red house. The light comes from the left. Trees.")
        assert opened(folder, tmp_path).fingerprint == dataset.fingerprint

    def test_joined_in_vain(self, folder, tmp_path):
        write(folder, images("a.png") | {"metadata.jsonl": '{"file_name": "a.png", "text": ["one", "two"]}'})
        said = []
        assert rows(opened(folder, tmp_path, said=said, caption_lines="joined")) == [("a.png", ("one", "two"))]
        assert said == [
            "dataset: 1 image has several captions (up to 2), of which each visit draws one; a.png: 'one', 'two'",
            'dataset: caption_lines "joined" has no effect: no text files beside images are read',
        ]

"""Which images are held out: a share of the training's, another split, or a dataset of their own."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.data.dataset.held_out import hold_out
from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.task.task import Dataset, HeldOutDataset, Model, Task, Validation
from tests.support.datasets import COMMIT, embedded_table, picture, write_jsonl


def held(tmp_path, held_out, *, seed=0, said=None, **dataset):
    """The whole, what is left to train on, and what is held out."""
    task = Task(
        model=Model(name="m"),
        dataset=Dataset(**dataset),
        validation=Validation(dataset=HeldOutDataset(**held_out)),
        seed=seed,
    )
    options = {"cache_dir": tmp_path / "cache", "revision": None, "limits": Limits()}
    whole = open_dataset(task.dataset, IMAGE, report=lambda line: None, **options)
    report = (lambda line: None) if said is None else said.append
    held_out = hold_out(task.validation.dataset, task.dataset, whole, IMAGE, seed=seed, report=report, **options)
    return whole, *held_out


def numbered(folder, count, start=0):
    """Images and their captions, told apart by a number."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        (folder / f"{index:03}.png").write_bytes(picture(index))
    rows = [{"file_name": f"{index:03}.png", "text": str(index)} for index in range(start, start + count)]
    write_jsonl(folder / "metadata.jsonl", rows)
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def captions(dataset):
    return [dataset.captions(i)[0] for i in range(len(dataset))]


class TestFraction:
    @pytest.mark.parametrize(
        "count, fraction, taken", [(20, 0.25, 5), (20, 0.01, 1), (20, 0.99, 19), (2, 0.5, 1), (100, 0.29, 29)]
    )
    def test_each_image_is_on_one_side(self, tmp_path, count, fraction, taken):
        name = str(numbered(tmp_path / "data", count))
        whole, training, held_out = held(tmp_path, {"fraction": fraction, "max_images": 1000}, name=name)
        assert (len(held_out.images), held_out.num_images, held_out.num_taken) == (taken, taken, taken)
        assert len(training) == training.num_images == count - taken
        assert sorted(captions(training) + captions(held_out.images)) == sorted(captions(whole))
        for side in (training, held_out.images):
            for index, caption in enumerate(captions(side)):
                assert side.image_bytes(index) == picture(int(caption)) and side.name(index) == f"{int(caption):03}.png"
        assert training.fingerprint == whole.fingerprint

    def test_the_seed_says_which_and_nothing_else(self, tmp_path):
        name, moved = str(numbered(tmp_path / "data", 30)), str(numbered(tmp_path / "moved", 30))
        found = [
            held(tmp_path, {"fraction": 0.3}, name=one, seed=seed)[2]
            for one, seed in ((name, 1), (moved, 1), (name, 2))
        ]
        assert captions(found[0].images) == captions(found[1].images) != captions(found[2].images)
        assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint

    def test_measured_are_no_more_than_asked_for(self, tmp_path):
        name = str(numbered(tmp_path / "data", 20))
        _, training, held_out = held(tmp_path, {"fraction": 0.5, "max_images": 3}, name=name)
        assert (len(held_out.images), held_out.num_images, len(training)) == (3, 10, 10)
        _, _, more = held(tmp_path, {"fraction": 0.5, "max_images": 4}, name=name)
        assert set(captions(held_out.images)) < set(captions(more.images))
        assert held_out.fingerprint != more.fingerprint

    def test_an_image_is_held_out_with_all_its_repeats(self, tmp_path):
        for folder, start in (("3_a cat", 0), ("1_a dog", 10)):
            numbered(tmp_path / "data" / folder, 6, start)
            (tmp_path / "data" / folder / "metadata.jsonl").unlink()
        whole, training, held_out = held(tmp_path, {"fraction": 0.4}, name=str(tmp_path / "data"), repeats=2)
        assert (len(whole), whole.num_images) == (6 * 3 * 2 + 6 * 2, 12)
        measured = {held_out.images.image_bytes(i) for i in range(len(held_out.images))}
        trained = [training.image_bytes(i) for i in range(len(training))]
        assert len(measured) == len(held_out.images) == 5 and training.num_images == 7
        assert not measured & set(trained)
        assert sorted(trained.count(data) for data in set(trained)) == sorted(
            6 if training.captions(i) == ("a cat",) else 2 for i in training.image_indices()
        )
        assert sum(training.caption_rules.values()) == training.num_images

    def test_masks_follow_their_images(self, tmp_path):
        folder = numbered(tmp_path / "data", 8)
        rows = [row | {"mask": f"{i:03}.png"} for i, row in enumerate(rows_of(folder))]
        write_jsonl(folder / "metadata.jsonl", rows)
        _, training, _ = held(tmp_path, {"fraction": 0.4}, name=str(folder), mask_column="mask")
        assert [training.mask_bytes(i) for i in range(5)] == [picture(int(text)) for text in captions(training)]

    @pytest.mark.parametrize(
        "kind", [pa.string_view(), pa.large_string(), pa.list_(pa.string()), pa.list_(pa.string_view())]
    )
    def test_captions_of_any_kind_follow_their_images(self, tmp_path, kind):
        values = [[str(i)] if pa.types.is_list(kind) else str(i) for i in range(6)]
        images = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(6)]
        text = kind if kind == pa.string_view() else pa.string()
        struct = pa.struct({"bytes": pa.binary(), "path": text})
        table = pa.table({"image": pa.array(images, struct), "text": pa.array(values, kind)})
        (tmp_path / "data").mkdir()
        with pa.ipc.new_stream(tmp_path / "data" / "rows.arrow", table.schema) as writer:
            writer.write_table(table)
        _, training, held_out = held(tmp_path, {"fraction": 0.4}, name=str(tmp_path / "data"))
        for side in (training, held_out.images):
            assert [side.image_bytes(i) for i in range(len(side))] == [picture(int(text)) for text in captions(side)]

    def test_one_image_cannot_be_shared(self, tmp_path):
        with pytest.raises(DatasetError, match=r"validation\.dataset\.fraction: the dataset has one image"):
            held(tmp_path, {"fraction": 0.5}, name=str(numbered(tmp_path / "data", 1)))


def side_cars(root, split, start):
    folder = numbered(root / split, 3, start)
    (folder / "metadata.jsonl").unlink()
    for index in range(start, start + 3):
        (folder / f"{index:03}.txt").write_text(str(index))


def tables(root, split, start):
    (root / "data").mkdir(parents=True, exist_ok=True)
    table = embedded_table([picture(start + i) for i in range(3)], [str(start + i) for i in range(3)])
    pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")


def saved(root, split, start):
    (root / split).mkdir(parents=True, exist_ok=True)
    table = embedded_table([picture(start + i) for i in range(3)], [str(start + i) for i in range(3)])
    with pa.ipc.new_stream(root / split / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    (root / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (root / "dataset_dict.json").write_text(
        json.dumps({"splits": sorted(p.name for p in root.iterdir() if p.is_dir())})
    )


FORMS = {
    "metadata": lambda root, split, start: numbered(root / split, 3, start),
    "side-cars": side_cars,
    "tables": tables,
    "saved": saved,
}


class TestSplit:
    @pytest.mark.parametrize("form", FORMS)
    def test_another_split_of_the_same_place(self, tmp_path, form):
        root, said = tmp_path / "data", []
        FORMS[form](root, "train", 0)
        FORMS[form](root, "validation", 10)
        FORMS[form](root, "test", 20)
        for split, first in (("validation", 10), ("test", 20)):
            whole, training, held_out = held(tmp_path, {"split": split}, said=said, name=str(root), repeats=3)
            assert training is whole and sorted(set(captions(training))) == ["0", "1", "2"] and len(training) == 9
            assert captions(held_out.images) == [str(first + i) for i in range(3)]
            assert (held_out.num_images, held_out.num_taken) == (3, 0)
        assert [line for line in said if "not used" in line] == []  # the training says that of the other splits
        with pytest.raises(
            DatasetError, match=r"has no split 'dev2' \(validation\.dataset\.split\); its splits: .*test"
        ):
            held(tmp_path, {"split": "dev2"}, name=str(root))

    def test_a_split_goes_by_its_other_names(self, tmp_path):
        FORMS["tables"](tmp_path / "data", "train", 0)
        FORMS["tables"](tmp_path / "data", "dev", 10)
        assert captions(held(tmp_path, {"split": "validation"}, name=str(tmp_path / "data"))[2].images)[0] == "10"

    def test_what_is_one_split_has_no_other(self, tmp_path):
        root = tmp_path / "data"
        tables(root, "train", 0)
        file = root / "data" / "train-00000-of-00001.parquet"
        plain = numbered(tmp_path / "plain", 3)
        for name in (file, plain):
            with pytest.raises(DatasetError, match=r"no split 'validation' .*its splits: train"):
                held(tmp_path, {"split": "validation"}, name=str(name))

    @pytest.mark.parametrize("form", ["metadata", "side-cars", "tables", "saved", "file"])
    def test_what_names_no_split_is_the_training_one(self, tmp_path, form):
        """As in 🤗 datasets."""
        root, kind = tmp_path / "data", "tables" if form == "file" else form
        FORMS[kind](root, "cats", 0)
        if form == "file":
            root = next(root.glob("data/*.parquet"))
        elif form == "saved":
            root = root / "cats"
        elif form == "tables":
            (root / "data" / "cats-00000-of-00001.parquet").rename(root / "cats.parquet")
        for split in ("train", "training"):
            _, training, held_out = held(tmp_path, {"split": split}, name=str(root))
            assert captions(held_out.images) == captions(training) == ["0", "1", "2"]

    def test_images_that_name_no_split_leave_it_to_a_folder_that_does(self, tmp_path):
        root = tmp_path / "data"
        side_cars(root, "cats", 0)
        side_cars(root, "test", 10)
        assert captions(held(tmp_path, {"split": "train"}, name=str(root))[2].images) == ["0", "1", "2"]
        side_cars(root, "train", 20)
        assert captions(held(tmp_path, {"split": "train"}, name=str(root))[2].images) == ["20", "21", "22"]

    @pytest.mark.parametrize("form", ["metadata", "tables"])
    def test_other_names_of_splits_are_no_training_one(self, tmp_path, form):
        FORMS[form](tmp_path / "data", "test", 0)
        with pytest.raises(DatasetError, match=r"no split 'train' .*its splits: test"):
            held(tmp_path, {"split": "train"}, name=str(tmp_path / "data"))


class TestAnother:
    def test_a_folder_of_its_own_with_the_trainings_columns(self, tmp_path):
        name = numbered(tmp_path / "data", 4)
        own = numbered(tmp_path / "own", 5, 10)
        for folder in (name, own):
            rows = rows_of(folder)
            write_jsonl(
                folder / "metadata.jsonl", [{"file_name": row["file_name"], "words": row["text"]} for row in rows]
            )
        _, training, held_out = held(tmp_path, {"name": str(own)}, name=str(name), caption_column="words", repeats=2)
        assert len(training) == 8 and captions(held_out.images) == ["10", "11", "12", "13", "14"]

    def test_its_content_is_its_identity(self, tmp_path):
        name, own = str(numbered(tmp_path / "data", 4)), numbered(tmp_path / "own", 5, 10)
        before = held(tmp_path, {"name": str(own)}, name=name)[2].fingerprint
        assert held(tmp_path, {"name": str(numbered(tmp_path / "copy", 5, 10))}, name=name)[2].fingerprint == before
        (own / "011.png").write_bytes(picture(99))
        assert held(tmp_path, {"name": str(own)}, name=name)[2].fingerprint != before

    def test_what_is_wrong_is_said_of_the_right_key(self, tmp_path):
        name = str(numbered(tmp_path / "data", 4))
        with pytest.raises(DatasetError, match=r"^validation\.dataset\.name is '/nowhere': there is no such"):
            held(tmp_path, {"name": "/nowhere"}, name=name)
        (tmp_path / "empty").mkdir()
        with pytest.raises(DatasetError, match=r"^validation\.dataset: empty holds nothing to train on"):
            held(tmp_path, {"name": str(tmp_path / "empty")}, name=name)

    def test_notes_say_what_they_are_about(self, tmp_path):
        own, said = numbered(tmp_path / "own", 3), []
        (own / "more.png").write_bytes(picture(50))
        held(tmp_path, {"name": str(own)}, name=str(numbered(tmp_path / "data", 4)), said=said)
        assert said == ["held out: 1 image is not used, not listed in the metadata: more.png"]


class TestHub:
    @pytest.fixture
    def splits(self, fake_hub, tmp_path):
        """As 🤗 datasets prepares them: in files, so that the next task needs no network."""
        import datasets

        folder = tmp_path / "cache/hub" / f"someone--things@{COMMIT}"
        for split, start in (("train", 0), ("validation", 10)):
            table = embedded_table([picture(start + i) for i in range(3)], [str(start + i) for i in range(3)])
            datasets.Dataset(table).save_to_disk(folder / split)
            fake_hub.splits[split] = datasets.load_from_disk(folder / split)
        return fake_hub

    def test_another_split_is_at_the_commit_of_the_training(self, splits, tmp_path):
        for _ in range(2):  # the second time without the library
            whole, training, held_out = held(tmp_path, {"split": "validation"}, name="someone/things")
            assert captions(training) == ["0", "1", "2"] and captions(held_out.images) == ["10", "11", "12"]
            assert held_out.revision == whole.revision == COMMIT
        asked = [call for call in splits.calls if call[0] == "repo_info"]
        assert [call[2] for call in asked] == ["main"] * 2  # the branch is looked up once a time, for both
        assert len(splits.calls) - len(asked) == 2  # once for each split
        with pytest.raises(DatasetError, match=r"has no split 'dev2'.*its splits: train, validation"):
            held(tmp_path, {"split": "dev2"}, name="someone/things")

    def test_one_of_its_own_has_its_own_commit(self, splits, tmp_path):
        name = str(numbered(tmp_path / "data", 4))
        _, training, held_out = held(tmp_path, {"name": "someone/things"}, name=name)
        assert (training.revision, held_out.revision) == (None, COMMIT)

"""Masks: where rows keep them, and that they are part of what a dataset is."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine.core.errors import DatasetError
from engine.data.media.geometry import UnreadableImage
from tests.support.caption_folders import images, opened, write
from tests.support.datasets import PICTURES, write_tar


def mask(value, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


MASKS = [mask(0), None, mask(255)]


def jsonl(folder, key):
    write(folder, images("a.png", "b.png", "c.png") | {"masks/0.png": MASKS[0], "masks/2.png": MASKS[2]})
    rows = [{"file_name": f"{name}.png", "text": name} for name in "abc"]
    rows[0][key], rows[2][key] = "masks/0.png", "masks/2.png"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def parquet(folder):
    folder.mkdir()
    table = {"image": PICTURES, "text": list("abc"), "mask": pa.array(MASKS, pa.binary())}
    pq.write_table(pa.table(table), folder / "t.parquet")
    return folder / "t.parquet"


def tar(folder):
    members = [("0.mask.png", MASKS[0]), ("0.png", PICTURES[0]), ("0.txt", b"a"), ("1.png", PICTURES[1])]
    members += [("1.txt", b"b"), ("2.png", PICTURES[2]), ("2.mask.png", MASKS[2]), ("2.txt", b"c")]
    return write_tar(folder / "t.tar", members)


FORMS = {
    "jsonl": (lambda f: jsonl(f, "mask"), "mask"),
    "jsonl as an image folder": (lambda f: jsonl(f, "mask_file_name"), "mask"),
    "parquet": (parquet, "mask"),
    "tar": (tar, "mask.png"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_masks(form, tmp_path):
    build, column = FORMS[form]
    path = build(tmp_path / "data")
    dataset = opened(path, tmp_path, mask_column=column)
    assert [dataset.mask_bytes(i) for i in range(3)] == MASKS
    assert [dataset.image_bytes(i) for i in range(3)] == PICTURES
    reference = opened(jsonl(tmp_path / "reference", "mask"), tmp_path, mask_column="mask")
    assert dataset.fingerprint == reference.fingerprint
    plain = opened(path, tmp_path, **({"image_column": "png"} if form == "tar" else {}))
    assert plain.fingerprint != dataset.fingerprint and plain.mask_bytes(0) is None


def test_masks_are_no_images_that_nobody_uses(tmp_path):
    folder, said = jsonl(tmp_path / "data", "mask"), []
    opened(folder, tmp_path, said=said, mask_column="mask")
    assert said == []
    (folder / "masks/2.png").unlink()
    opened(folder, tmp_path, said=said, mask_column="mask")
    assert said == ["dataset: 1 image listed in the metadata, file not found: masks/2.png"]
    said.clear()
    opened(folder, tmp_path, said=said)
    assert said == ["dataset: 1 image is not used, not listed in the metadata: masks/0.png"]


def test_a_mask_is_part_of_the_fingerprint(tmp_path):
    folder = jsonl(tmp_path / "data", "mask")
    before = opened(folder, tmp_path, mask_column="mask")
    (folder / "masks/0.png").write_bytes(mask(7))
    assert opened(folder, tmp_path, mask_column="mask").fingerprint != before.fingerprint
    (folder / "masks/0.png").unlink()
    gone = opened(folder, tmp_path, mask_column="mask")
    assert gone.fingerprint != before.fingerprint
    with pytest.raises(UnreadableImage):
        gone.mask_bytes(0)


def test_no_such_column(tmp_path):
    with pytest.raises(DatasetError, match=r"no column 'alpha' of images \(dataset.mask_column\); .*file_name"):
        opened(jsonl(tmp_path / "a", "mask"), tmp_path, mask_column="alpha")
    with pytest.raises(DatasetError, match="no column 'alpha'"):
        opened(parquet(tmp_path / "b"), tmp_path, mask_column="alpha")
    folder = write(tmp_path / "c", images("a.png") | {"a.txt": "x"})
    with pytest.raises(DatasetError, match=r"has none.*alpha_mask"):
        opened(folder, tmp_path, mask_column="mask")


def test_a_strangers_mask_stays_inside(tmp_path):
    folder = jsonl(tmp_path / "data", "mask")
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace("masks/0.png", "http://example.org/0.png"))
    with pytest.raises(DatasetError, match="not downloaded one by one"):
        opened(folder, tmp_path, mask_column="mask")


class TestOneTrainersMasks:
    @pytest.fixture
    def folder(self, tmp_path):
        files = images("a.jpg", "b.png", "2_x/c.webp") | {"a.txt": "a", "b.txt": "b", "2_x/c.txt": "c"}
        return write(tmp_path / "data", files | {"a-masklabel.png": MASKS[0], "2_x/c-MaskLabel.PNG": MASKS[2]})

    def test_are_masks_where_masks_are_asked_for(self, folder, tmp_path):
        said = []
        dataset = opened(folder, tmp_path, said=said, mask_column="mask")
        found = {dataset.name(i): dataset.mask_bytes(i) for i in range(len(dataset))}
        assert found == {"a.jpg": MASKS[0], "b.png": None, "2_x/c.webp": MASKS[2]}
        assert said == []
        before = dataset.fingerprint
        (folder / "a-masklabel.png").write_bytes(mask(7))
        assert opened(folder, tmp_path, mask_column="mask").fingerprint != before

    def test_are_no_images(self, folder, tmp_path):
        said = []
        dataset = opened(folder, tmp_path, said=said, trigger_word="sks")
        assert {dataset.name(i) for i in range(len(dataset))} == {"a.jpg", "b.png", "2_x/c.webp"}
        assert said == [
            "dataset: 2 masks are left out, dataset.mask_column would use them: 2_x/c-MaskLabel.PNG, a-masklabel.png"
        ]

    def test_without_an_image_are_named(self, folder, tmp_path):
        write(folder, images("z-masklabel.png", "b-condlabel.png"))
        said = []
        assert opened(folder, tmp_path, said=said, mask_column="mask").num_images == 3
        assert said == [
            "dataset: 1 image for an inpainting model (-condlabel) is not used: b-condlabel.png",
            "dataset: 1 mask has no image of that name beside it: z-masklabel.png",
        ]

"""Small datasets in every form, and what is in them."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.task.task import Dataset

CAPTIONS = ["a red square", "ein grünes Quadrat", ""]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TICK = 0.02
"""Longer than the kernel's clock for files stands still."""


def picture(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), ((index * 40) % 256, index // 7, 9)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(index) for index in range(3)]


def opened(tmp_path: Path, *, report=lambda line: None, revision=None, limits=Limits(), **dataset):  # noqa: B008
    wanted = Dataset(**{k: str(v) for k, v in dataset.items()})
    return open_dataset(wanted, IMAGE, cache_dir=tmp_path / "cache", revision=revision, report=report, limits=limits)


def content(dataset) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(dataset.image_bytes(i), dataset.captions(i)) for i in range(len(dataset))]


EXPECTED = [(image, (caption,)) for image, caption in zip(PICTURES, CAPTIONS, strict=True)]


def write_images(folder: Path, names=("b.png", "a.png", "sub/c.png")) -> list[str]:
    for name, data in zip(names, PICTURES, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return list(names)


def write_jsonl(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def embedded_table(images=PICTURES, captions=CAPTIONS) -> pa.Table:
    cells = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    return pa.table({"id": range(len(images)), "image": cells, "text": captions})


def metadata_jsonl(folder):
    names = write_images(folder)
    rows = [{"file_name": name, "text": text} for name, text in zip(names, CAPTIONS, strict=True)]
    write_jsonl(folder / "metadata.jsonl", rows)
    return folder


def metadata_csv(folder):
    names = write_images(folder)
    lines = [f'{name},"{text}"' for name, text in zip(names, CAPTIONS, strict=True)]
    (folder / "metadata.csv").write_text("\ufefffile_name,text\r\n" + "\r\n".join(lines) + "\r\n")
    return folder


def metadata_parquet(folder):
    names = write_images(folder)
    pq.write_table(pa.table({"file_name": names, "text": CAPTIONS}), folder / "metadata.parquet")
    return folder


def metadata_in_subfolders(folder):
    for name, rows in (("x", [0, 1]), ("y", [2])):
        write_jsonl(folder / name / "metadata.jsonl", [{"file_name": f"{i}.png", "text": CAPTIONS[i]} for i in rows])
        for i in rows:
            (folder / name / f"{i}.png").write_bytes(PICTURES[i])
    return folder


def parquet_file(folder):
    folder.mkdir()
    pq.write_table(embedded_table(), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def parquet_folder(folder):
    (folder / "data").mkdir(parents=True)
    pq.write_table(embedded_table(PICTURES[:2], CAPTIONS[:2]), folder / "data/train-00000-of-00002.parquet")
    pq.write_table(embedded_table(PICTURES[2:], CAPTIONS[2:]), folder / "data/train-00001-of-00002.parquet")
    pq.write_table(embedded_table(PICTURES[:1], ["no"]), folder / "data/test-00000-of-00001.parquet")
    return folder


def parquet_of_paths(folder):
    names = write_images(folder)
    pq.write_table(pa.table({"image": names, "text": CAPTIONS}), folder / "table.parquet")
    return folder


def parquet_of_binaries(folder):
    folder.mkdir()
    table = pa.table({"image": pa.array(PICTURES, pa.large_binary()), "text": pa.array(CAPTIONS).dictionary_encode()})
    pq.write_table(table, folder / "table.parquet")
    return folder


def saved_dataset(folder):
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "text": CAPTIONS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder, num_shards=2)
    return folder


def saved_dataset_dict(folder):
    import datasets

    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "text": CAPTIONS}
    splits = {"test": datasets.Dataset.from_dict({"image": [], "text": []}), "train": datasets.Dataset.from_dict(rows)}
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def arrow_file(folder):
    folder.mkdir()
    table = embedded_table()
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "rows.arrow"


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def webdataset_txt(folder):
    members = []
    for i, caption in enumerate(CAPTIONS):
        members += [(f"s/{i:03}.png", PICTURES[i]), (f"s/{i:03}.txt", caption.encode() + b"\n")]
    return write_tar(folder / "shard-000.tar", members)


def webdataset_json(folder):
    members = []
    for i, caption in enumerate(CAPTIONS):
        members += [(f"{i}.jpg", PICTURES[i]), (f"{i}.json", json.dumps({"text": caption, "n": i}).encode())]
    write_tar(folder / "a.tar", members)
    return folder


def jsonl_table(folder):
    names = write_images(folder)
    rows = [{"image": name, "text": text} for name, text in zip(names, CAPTIONS, strict=True)]
    write_jsonl(folder / "data.jsonl", rows)
    return folder / "data.jsonl"


def json_list(folder):
    names = write_images(folder)
    rows = [{"image": name, "text": text} for name, text in zip(names, CAPTIONS, strict=True)]
    (folder / "data.json").write_text(json.dumps(rows, indent=1))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def csv_table_with_absolute_paths(folder):
    names = write_images(folder)
    lines = [f'{(folder / name).absolute()},"{text}"' for name, text in zip(names, CAPTIONS, strict=True)]
    (folder / "data.csv").write_text("image,text\n" + "\n".join(lines))
    return folder / "data.csv"


FORMS = [
    metadata_jsonl, metadata_csv, metadata_parquet, metadata_in_subfolders, parquet_file, parquet_folder,
    parquet_of_paths, parquet_of_binaries, saved_dataset, saved_dataset_dict, arrow_file, webdataset_txt,
    webdataset_json, jsonl_table, json_list, csv_table_with_absolute_paths,
]  # fmt: skip


def jsonl_of(*rows):
    def build(folder):
        write_images(folder)
        write_jsonl(folder / "metadata.jsonl", rows)
        return folder

    return build


def parquet_of(**columns):
    def build(folder):
        folder.mkdir()
        pq.write_table(pa.table(columns), folder / "t.parquet")
        return folder

    return build


def raw(name, data):
    def build(folder):
        write_images(folder)
        (folder / name).write_bytes(data)
        return folder

    return build


def hidden_png():
    return [{"bytes": PICTURES[0], "path": None}]


def require_refused(tmp_path, build, message):
    """Check that opening what `build` writes is refused by one line that matches `message`."""
    with pytest.raises(DatasetError, match=message) as caught:
        opened(tmp_path, name=build(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def put(folder, name, text=None):
    """Write a picture, or a text, into a folder."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(PICTURES[0] if text is None else text.encode())


def metadata(folder, *names, at="metadata.jsonl"):
    """Write metadata that lists these names, with a caption each."""
    rows = [{"file_name": name, "text": f"t{number}"} for number, name in enumerate(names)]
    put(folder, at, "".join(json.dumps(row) + "\n" for row in rows))

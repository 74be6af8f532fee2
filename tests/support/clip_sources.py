"""Datasets of three clips in every form. The clips are not decoded here: any bytes will do."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from engine.data.dataset.open import open_dataset
from engine.data.media.registry import MEDIA
from engine.task.task import Dataset
from tests.support.datasets import write_jsonl, write_tar

CLIPS = [b"the first clip", b"the second clip", b"the third clip"]
CAPTIONS = ["a cat jumps", "ein Hund läuft", "waves"]
NAMES = ["b.mp4", "a.webm", "sub/c.MOV"]
EXPECTED = [(clip, (caption,)) for clip, caption in zip(CLIPS, CAPTIONS, strict=True)]


def opened(tmp_path, *, report=lambda line: None, **dataset):
    wanted = Dataset(**{key: str(value) for key, value in dataset.items()})
    medium = MEDIA["video"].make(wanted)
    return open_dataset(wanted, medium, cache_dir=tmp_path / "cache", revision=None, report=report)


def put(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def with_clips(folder, files=()):
    return put(folder, {**dict(zip(NAMES, CLIPS, strict=True)), **dict(files)})


def lines_of(texts):
    return "".join(f"{text}\n" for text in texts)


def side_cars(folder):
    names = ["0.mp4", "1.webm", "sub/2.MOV"]
    texts = ["0.txt", "1.caption", "sub/2.MOV.txt"]
    return put(folder, dict(zip(names + texts, CLIPS + CAPTIONS, strict=True)))


def metadata_of_file_names(folder):
    with_clips(folder)
    write_jsonl(folder / "metadata.jsonl", [{"file_name": n, "text": t} for n, t in zip(NAMES, CAPTIONS, strict=True)])
    return folder


def csv_of_videos(folder):
    rows = [f'{name},"{text}"' for name, text in zip(NAMES, CAPTIONS, strict=True)]
    return with_clips(folder, {"metadata.csv": lines_of(["video,text", *rows])})


def line_by_line(folder):
    return with_clips(folder, {"prompts.txt": "\ufeff" + lines_of(CAPTIONS), "videos.txt": "\r\n".join(NAMES)})


def musubi(folder):
    rows = [{"video_path": n, "caption": t} for n, t in zip(NAMES, CAPTIONS, strict=True)]
    return with_clips(folder, {"anything.jsonl": lines_of(map(json.dumps, rows))})


def tar_with_thumbnails(folder):
    members = []
    for index, (clip, text) in enumerate(zip(CLIPS, CAPTIONS, strict=True)):
        key = f"{index:05}"
        members += [(f"{key}.jpg", b"a thumbnail"), (f"{key}.mp4", clip), (f"{key}.txt", text.encode())]
    return write_tar(folder / "shard-000.tar", members)


def tar_with_json(folder):
    members = []
    for index, (clip, text) in enumerate(zip(CLIPS, CAPTIONS, strict=True)):
        members += [(f"{index}.json", json.dumps({"text": text, "fps": 24}).encode()), (f"{index}.mp4", clip)]
    write_tar(folder / "a.tar", members)
    return folder


def parquet_of_bytes(folder):
    folder.mkdir()
    cells = [{"bytes": clip, "path": f"{i}.mp4"} for i, clip in enumerate(CLIPS)]
    pq.write_table(pa.table({"video": cells, "text": CAPTIONS}), folder / "train.parquet")
    return folder


def parquet_of_paths(folder):
    pq.write_table(pa.table({"video": NAMES, "text": CAPTIONS}), with_clips(folder) / "metadata.parquet")
    return folder


def saved_videos(folder):
    import datasets

    features = datasets.Features({"video": datasets.Video(decode=False), "text": datasets.Value("string")})
    rows = {"video": [{"bytes": clip, "path": None} for clip in CLIPS], "text": CAPTIONS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return folder


FORMS = [
    side_cars, metadata_of_file_names, csv_of_videos, line_by_line, musubi, tar_with_thumbnails, tar_with_json,
    parquet_of_bytes, parquet_of_paths, saved_videos,
]  # fmt: skip

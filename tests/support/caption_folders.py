"""Folders of images with captions beside them, opened as a dataset."""

from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
from tests.support.datasets import picture


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def images(*names):
    return {name: picture(index) for index, name in enumerate(names)}


def opened(folder, tmp_path, *, said=None, **dataset):
    wanted = Dataset(name=str(folder), **dataset)
    lines = [] if said is None else said
    return open_dataset(wanted, IMAGE, cache_dir=tmp_path / "cache", revision=None, report=lines.append)


def rows(dataset):
    return [(dataset.name(i), dataset.captions(i)) for i in range(len(dataset))]

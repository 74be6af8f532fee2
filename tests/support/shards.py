"""Datasets of many WebDataset tars, as files to serve or to write into a folder."""

import io
import random

from PIL import Image

from tests.support.archives import tar_of


def picture(number: int, side: int = 16, *, noise: bool = False) -> bytes:
    """Return a PNG of which there is one for each number, `side` pixels wide and a little less high."""
    buffer, size = io.BytesIO(), (side, side - number % 3)
    image = Image.new("RGB", size, (number % 256, number // 256 % 256, 7))
    if noise:
        image = Image.frombytes("RGB", size, random.Random(number).randbytes(3 * size[0] * size[1]))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def shard(first: int, count: int, *, side: int = 16, masks: bool = False, noise: bool = False) -> bytes:
    """Return a tar of `count` images with captions, and masks of every second one."""
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        members[f"s/{number:04}.png"] = picture(number, side, noise=noise)
        members[f"s/{number:04}.txt"] = f"picture {number}".encode()
        if masks and number % 2:
            members[f"s/{number:04}.mask.png"] = picture(number + 99, side)  # of the same size
    return tar_of(members)


def shards(num_shards: int, count: int = 4, **options: int | bool) -> dict[str, bytes]:
    """Return tars by their names, `t-000.tar` and so on."""
    return {f"t-{n:03}.tar": shard(n * count, count, **options) for n in range(num_shards)}


def written(folder, files: dict[str, bytes]):
    """Write files into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder

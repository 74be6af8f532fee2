"""Strategies: whole inputs of each kind, with lies and damage in them, and noise."""

from __future__ import annotations

import base64
import bz2
import copy
import gzip
import hashlib
import io
import json
import lzma
import struct
import tarfile
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from engine.core.canonical_json import canonical_json
from engine.results.checkpoint import build_files, spelled
from tests.support.clips import CODECS, clip_bytes
from tests.support.tiny import SMALL_PNG

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "", "../x", "/etc/passwd", "\0", "1" * 400, 1e308, 2**63, -1, 0])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TASK = {
    "model": {"name": "m", "variant": None, "revision": "main"},
    "dataset": {"name": "d", "url": None, "image_column": "image", "caption_column": "text"},
    "validation": {"prompt": None, "num_images": 4},
    "train_args": {
        "learning_rate": 1e-4,
        "batch_size": 1,
        "num_train_steps": 5,
        "max_train_steps": 10,
        "resolution": 512,
        "snr_gamma": 5.0,
        "lr_scheduler": {"lr_scheduler": "cosine", "lr_warmup_steps": 5},
        "adam_args": {"beta1": 0.9, "epsilon": 1e-8},
    },
    "lora": {"rank": 4, "target_modules": ["to_k", "to_q"]},
    "transforms": {"random_flip": True},
    "mixed_precision": "no",
    "seed": 1,
    "version": "2.5.0",
}
NAMES = st.one_of(
    st.sampled_from(
        [
            "1.png",
            "2.png",
            "metadata.jsonl",
            "a/1.png",
            "../x",
            "/x",
            "a/../../x",
            "C:\\x",
            ".",
            "",
            "a",
            "a/b/c",
            "x" * 300,
        ]
    ),
    st.text(max_size=12),
)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with some of it replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 3))):
        holder = value
        while isinstance(holder, dict | list) and holder and draw(st.booleans()):
            key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
            if not isinstance(holder[key], dict | list):
                break
            holder = holder[key]
        if not isinstance(holder, dict | list) or not holder:
            continue
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "remove":
            del holder[key]
        elif what == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=6))] = draw(VALUES)
        else:
            holder[key] = draw(VALUES)
    return value


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes flipped, cut out, doubled or put in."""
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        new = draw(st.binary(max_size=16) | st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7]))
        data = data[:at] + new + data[at + length :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def tasks() -> st.SearchStrategy[bytes]:
    whole = mutated(TASK).map(dumped)
    return st.one_of(
        whole, whole.flatmap(damaged), VALUES.map(dumped), st.binary(max_size=60), st.text().map(str.encode)
    )


# --- Archives ---------------------------------------------------------------------------------------------------------


@st.composite
def _tar(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        for name in draw(st.lists(NAMES, max_size=4)):
            info = tarfile.TarInfo(name.replace("\0", "?"))
            data = draw(st.binary(max_size=40))
            info.size = len(data)
            info.mode = draw(st.integers(0, 0o7777))
            info.mtime = draw(st.sampled_from([0, 1.5]))  # a fraction has an extended header
            kinds = [tarfile.REGTYPE] * 6 + [
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.CHRTYPE,
                tarfile.DIRTYPE,
                b"x",
                b"S",
            ]
            info.type = draw(st.sampled_from(kinds))
            info.linkname = draw(st.sampled_from(["", "/etc/passwd", "../../x", "1.png"]))
            try:
                archive.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):  # a name that this format cannot hold
                continue
    return buffer.getvalue()


def _with_checksums(data: bytes) -> bytes:
    """The checksums of a tar's headers mended: what is damaged besides is to be read."""
    mended = bytearray(data)
    for start in range(0, len(data) - 511, 512):
        block = mended[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            mended[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(mended)


def tars() -> st.SearchStrategy[bytes]:
    broken = _tar().flatmap(damaged)
    return st.one_of(_tar(), broken, broken.map(_with_checksums))


@st.composite
def _zip(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in draw(st.lists(NAMES, max_size=4, unique=True)):
            info = zipfile.ZipInfo("x")
            info.filename = name.encode(errors="replace").decode()
            info.compress_type = draw(st.sampled_from([0, 8, 8, 12, 14]))
            info.external_attr = draw(st.sampled_from([0, 0o100644, 0o120777, 0o020666, 0o106755])) << 16
            archive.writestr(info, draw(st.binary(max_size=40)))
    return buffer.getvalue()


PACKERS = (bytes, gzip.compress, bz2.compress, lzma.compress, lambda data: gzip.compress(gzip.compress(data)))
MAGIC = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b\x08",
    b"BZh9",
    b"\xfd7zXZ\0",
    b"PAR1",
    b"ARROW1\0\0",
    b"{",
    b"[",
    b"<",
)


def archives() -> st.SearchStrategy[bytes]:
    packed = st.tuples(st.sampled_from(PACKERS), st.one_of(_tar(), _tar().flatmap(damaged))).map(
        lambda two: two[0](two[1])
    )
    noise = st.tuples(st.sampled_from(MAGIC), st.binary(max_size=200)).map(b"".join)
    return st.one_of(packed, packed.flatmap(damaged), _zip(), _zip().flatmap(damaged), noise, st.binary(max_size=700))


# --- Checkpoints ------------------------------------------------------------------------------------------------------

ADAPTER = {"to_q.lora_A": torch.ones(2, 3), "to_q.lora_B": torch.zeros(3, 2)}
GROUPS = ("adapter", "exp_avg", "exp_avg_sq")
STATE = save({f"{group}.{name}": tensor.clone() for group in GROUPS for name, tensor in ADAPTER.items()})
LORA = save({f"unet.{name}.weight": tensor for name, tensor in ADAPTER.items()})
FILES, _ = build_files(
    global_step=3,
    state_files={"state.safetensors": STATE},
    state_scalars={"global_step": 3, "optimizer_step": 3, "loss_scale": None},
    weights=dict.fromkeys(("pytorch_lora_weights.safetensors", "lora_webui.safetensors"), LORA),
    world={"seed": 1, "rank": 2},
    settings={"revision": "main"},
    lineage=[{"parent": None}],
    history=b"[1, 0.5, 0.001, 1.0]\n[2, 0.4, 0.001, 1.0]\n[3, 0.4, 0.001, null]\n",
    baseline=[{"file": "without-0.png", "prompt": "a", "seed": 1}],
    pictures={"without-0.png": b"png"},
    finished=False,
    held_out_losses=b'{"step": 0, "loss": 0.5, "strata": [0.75, 0.25], "images": 3, "curve": "0123456789abcdef"}\n',
    manifest={"base_model": {"identity": "x"}, "dataset": {"fingerprint": "y"}, "parent": None},
)


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, bytes]:
    """A good checkpoint, of which any file is damaged or forged; mostly with hashes that agree."""
    files = dict(FILES)
    for name in draw(st.sets(st.sampled_from(sorted(set(files) - {"manifest.json"})), max_size=2)):
        if name == "state.json":
            files[name] = _written(name, draw(mutated(json.loads(files[name]))))
        elif name.startswith("state") or draw(st.booleans()):
            files[name] = draw(safetensors() if name.endswith(".safetensors") else damaged(files[name]))
    if draw(st.integers(0, 3)):
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {name: hashlib.sha256(files[name]).hexdigest() for name in manifest["files"]}
        manifest = draw(mutated(manifest)) if draw(st.booleans()) else manifest
        files["manifest.json"] = _sealed(manifest)
    for name in draw(st.sets(st.sampled_from(sorted(files)), max_size=1)) if draw(st.integers(0, 5)) == 0 else ():
        del files[name]
    return files


def _sealed(manifest: dict[str, Any]) -> bytes:
    body = {key: value for key, value in manifest.items() if key != "digest"}
    try:
        digest = hashlib.sha256(canonical_json(body)).hexdigest()
    except ValueError:  # NaN, or half a character: no digest can be made of it
        digest = ""
    return _written("manifest.json", body | {"digest": digest})


def _written(name: str, value: Any) -> bytes:
    """As the program writes it, or as near as JSON comes."""
    try:
        return spelled(name, value)
    except ValueError:
        return dumped(value)


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """A state's or a LoRA's file; a header that claims what it likes; or noise."""
    kind = draw(st.sampled_from(["good", "damaged", "claims", "noise"]))
    good = draw(st.sampled_from([STATE, LORA]))
    if kind in ("good", "damaged"):
        return draw(damaged(good)) if kind == "damaged" else good
    if kind == "noise":
        return draw(st.binary(max_size=80))
    number = st.sampled_from([0, 1, 2, 3, 8, 24, 2**31, 2**32, 2**62, 2**63, 2**64, 10**10, -1])
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F32", "F16", "BF16", "F64", "I8", "BOOL", "F8_E4M3", "X", ""]),
            "shape": st.lists(number, max_size=4),
            "data_offsets": st.lists(number, min_size=2, max_size=2),
        }
    )
    keys = st.sampled_from(
        [*json.loads(good[8 : 8 + struct.unpack("<Q", good[:8])[0]]), "__metadata__", "x", "adapter."]
    )
    header = dumped(draw(st.dictionaries(keys, entry | VALUES, max_size=4)))
    length = draw(st.sampled_from([len(header)] * 6 + [0, 2**63, len(header) + 8, len(header) - 1]))
    return struct.pack("<Q", max(length, 0)) + header + draw(st.binary(max_size=64))


# --- Datasets ---------------------------------------------------------------------------------------------------------


def _parquet() -> bytes:
    buffer = io.BytesIO()
    cells = [{"bytes": SMALL_PNG[:50], "path": None}, {"bytes": None, "path": "a.png"}, None]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", "c"], "n": [1, 2, 3]}), buffer)
    return buffer.getvalue()


def _arrow() -> bytes:
    table, buffer = pa.table({"image": [b"x" * 30, b"y", None], "text": [["a"], ["b", "c"], ["d"]]}), io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def _webdataset() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (("1.png", b"x"), ("1.txt", b"a"), ("2.png", b"y"), ("2.json", b'{"text": "b"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tables() -> st.SearchStrategy[tuple[str, bytes]]:
    row = st.dictionaries(st.sampled_from(["file_name", "text", "image", "x"]), VALUES, max_size=4)
    lines = st.lists(row.map(dumped), max_size=4).map(b"\n".join)
    cells = st.lists(st.text(max_size=6), min_size=1, max_size=3).map(",".join)
    csv = st.lists(cells, max_size=4).map(lambda rows: "\n".join(["file_name,text", *rows]).encode(errors="replace"))
    good = {"t.parquet": _parquet(), "t.arrow": _arrow(), "t.tar": _webdataset()}
    files = st.sampled_from(sorted(good.items())).flatmap(lambda item: st.tuples(st.just(item[0]), damaged(item[1])))
    return st.one_of(
        st.tuples(st.sampled_from(["metadata.jsonl", "t.jsonl"]), st.one_of(lines, lines.flatmap(damaged))),
        st.tuples(st.just("t.json"), st.one_of(st.lists(row, max_size=3).map(dumped), VALUES.map(dumped))),
        st.tuples(
            st.sampled_from(["metadata.csv", "t.tsv"]), st.one_of(csv, csv.flatmap(damaged), st.binary(max_size=60))
        ),
        files,
        files,
    )


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(SMALL_PNG)).resize((24, 16))
    picture.save(buffer, kind)
    return buffer.getvalue()


GOOD_IMAGES = [_encoded(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")]
NEARLY = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAA")


def images() -> st.SearchStrategy[bytes]:
    whole = st.sampled_from(GOOD_IMAGES).flatmap(damaged)
    noise = st.tuples(st.sampled_from([image[:24] for image in GOOD_IMAGES] + [NEARLY]), st.binary(max_size=100))
    return st.one_of(whole, whole, noise.map(b"".join))


CONTAINERS = {"vp9": ".webm", "av1": ".webm", "ffv1": ".mkv", "mpeg4": ".avi", "mjpeg": ".avi"}
GOOD_CLIPS = [clip_bytes(CONTAINERS.get(name, ".mp4"), codec=name, frames=4, size=(32, 16)) for name in CODECS]


@st.composite
def _overwritten(draw: st.DrawFn, data: bytes) -> bytes:
    """Damaged, but as long as before: a container of another length is refused before anything is decoded."""
    for _ in range(draw(st.integers(0, 6))):
        new = draw(st.binary(min_size=1, max_size=16) | st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f" + b"\xff" * 3]))
        at = draw(st.integers(0, len(data) - len(new)))
        data = data[:at] + new + data[at + len(new) :]
    return data


def videos() -> st.SearchStrategy[bytes]:
    clips = st.sampled_from(GOOD_CLIPS)
    noise = st.tuples(clips.map(lambda clip: clip[:60]), st.binary(max_size=200))
    return st.one_of(
        clips.flatmap(_overwritten), clips.flatmap(_overwritten), clips.flatmap(damaged), noise.map(b"".join)
    )

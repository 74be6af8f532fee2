"""The preview shows what is there, whole files only, and touches nobody else's."""

import hashlib
import os

import pytest

from engine.core.errors import OutputError
from engine.core.files.atomic_files import Stored
from engine.results.output import preview


@pytest.fixture
def kept(tmp_path):
    """Store contents by name, as the job does."""

    def kept(**contents):
        found = {}
        for name, data in contents.items():
            path = tmp_path / f"kept-{name}"
            path.write_bytes(data)
            found[name] = Stored(path, hashlib.sha256(data).hexdigest())
        return found

    return kept


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def files(out):
    folder = out / "preview"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_for_a_person(out, kept):
    stored = kept(a=b"picture", b=b"lora", c=b"folder")
    weights = {"steps/000200_webui.safetensors": stored["b"], "steps/000200/part/config.json": stored["c"]}
    preview.renew(out, {"step-000200/0.png": stored["a"]}, weights)
    assert files(out) == {
        "step-000200-0.png": b"picture",
        "step-000200_webui.safetensors": b"lora",
        "step-000200/part/config.json": b"folder",
    }


def test_what_is_no_result_any_more_goes_and_the_rest_stays(out, kept):
    stored = kept(a=b"one", b=b"two")
    preview.renew(out, {}, {"steps/000002.safetensors": stored["a"], "steps/000004/x/y.json": stored["a"]})
    (out / "preview" / ".step-000002-0.png.tmp").write_bytes(b"a write that was killed")
    preview.renew(out, {"step-000006/0.png": stored["b"]}, {"steps/000002.safetensors": stored["a"]})
    assert files(out) == {"step-000002.safetensors": b"one", "step-000006-0.png": b"two"}
    preview.renew(out, {}, {})
    assert not (out / "preview").exists()


def test_a_picture_is_a_copy_and_weights_a_second_name(out, kept):
    stored = kept(a=b"picture", b=b"lora")
    preview.renew(out, {"step-000002/0.png": stored["a"]}, {"steps/000002.safetensors": stored["b"]})
    assert stored["a"].path.stat().st_nlink == 1 and stored["b"].path.stat().st_nlink == 2


def test_without_second_names_weights_are_left_out(out, kept, monkeypatch):
    def refuse(*_, **__):
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    preview.renew(out, {}, {"steps/000002.safetensors": kept(a=b"lora")["a"]})
    assert files(out) == {}


def test_a_damaged_picture_is_not_shown(out, kept):
    stored = kept(a=b"picture")["a"]
    stored.path.write_bytes(b"other")
    with pytest.raises(OutputError):
        preview.renew(out, {"step-000002/0.png": stored}, {})
    assert files(out) == {}


def test_others_files_stay(out, kept):
    folder = out / "preview"
    folder.mkdir()
    for name in ("mine.png", "step-2.png", "step-000002-0.png"):
        (folder / name).write_bytes(b"?")
    preview.remove(out)
    assert files(out) == {"mine.png": b"?", "step-2.png": b"?"}


def test_a_link_is_not_followed(out, tmp_path, kept):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "step-000002-0.png").write_bytes(b"?")
    (out / "preview").symlink_to(elsewhere)
    preview.renew(out, {"step-000004/0.png": kept(a=b"picture")["a"]}, {})
    preview.remove(out)
    assert [path.name for path in elsewhere.iterdir()] == ["step-000002-0.png"]

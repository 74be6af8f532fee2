"""The program `caption` as it is started, with captioners from a Hub."""

import os
import subprocess
import sys

import pytest

from tests.support.caption_folders import write
from tests.support.fake_hub import COMMIT, serving_hub
from tests.support.fakes import png
from tests.support.harness import ENTRYPOINT
from tests.support.tiny_captioners import build_blip, build_tagger

pytestmark = pytest.mark.long


def caption(folder, *flags, env):
    return subprocess.run(
        [sys.executable, str(ENTRYPOINT), "caption", str(folder), "--device", "cpu", *flags],
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_model_from_the_hub_and_later_without_it(tmp_path):
    (tmp_path / "blip").mkdir()
    model = build_blip(tmp_path / "blip")
    write(model, {"modeling_mine.py": "raise SystemExit", "pytorch_model.bin": b"\x80\x04cos\nsystem\n."})
    folder = write(tmp_path / "images", {"a.png": png(1), "b.png": png(2)})
    flags = ("--model", "someone/blip", "--max-tokens", "4")
    env = {"HF_HOME": str(tmp_path / "cache")}
    offline = caption(folder, *flags, env=env | {"HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 4 and "hf download someone/blip" in offline.stderr and not list(folder.glob("*.txt"))
    with serving_hub({"someone/blip": model}) as (hub, downloaded):
        online = caption(folder, *flags, "--limit", "1", env=env | {"HF_ENDPOINT": hub})
        assert online.returncode == 0, online.stderr
        assert any(COMMIT in name for name in downloaded)
        assert not [name for name in downloaded if name.endswith((".py", ".bin"))]
    later = caption(folder, *flags, env=env | {"HF_HUB_OFFLINE": "1"})
    assert later.returncode == 0, later.stderr
    assert sorted(path.name for path in folder.glob("*.txt")) == ["a.txt", "b.txt"]


def test_of_a_tagger_the_hub_gives_the_two_files_alone(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs requirements-tagger.txt")
    model = build_tagger(tmp_path / "tagger", [("long_hair", 0), ("rating", 9)])
    write(model, {"config.json": "{}", "model.safetensors": b"", "model.msgpack": b""})
    folder = write(tmp_path / "images", {"a.png": png(1)})
    flags = ("--model", "someone/tagger", "--threshold", "0.01")
    env = {"HF_HOME": str(tmp_path / "cache")}
    with serving_hub({"someone/tagger": model}) as (hub, downloaded):
        online = caption(folder, *flags, env=env | {"HF_ENDPOINT": hub})
        assert online.returncode == 0, online.stderr
        assert {name.rpartition("/")[2] for name in downloaded} == {"config.json", "model.onnx", "selected_tags.csv"}
    later = caption(folder, *flags, "--overwrite", env=env | {"HF_HUB_OFFLINE": "1"})
    assert later.returncode == 0, later.stderr
    assert (folder / "a.txt").read_text() == "long hair\n"

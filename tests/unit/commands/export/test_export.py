"""Which base model an export takes, and flags that do not go together; what it makes is in `integration/`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine.commands.export import base
from engine.commands.export import main as export
from engine.core.errors import Interrupted, ModelError, OutputError, TaskError
from engine.core.files.built_beside import Streamed

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB, LOCAL = f"org/model@{COMMIT}", f"sha256:{'a' * 64}"


def located(monkeypatch, given, wanted, *, found=None, variants=None):
    """The base model that is looked for, as (name, revision, variant, pinned commit)."""
    asked = []

    def locate(model, *, pinned, **options):
        asked.append((model.name, model.revision, model.variant, pinned))
        return SimpleNamespace(identity=found or wanted, identities={})

    monkeypatch.setattr(base.locating, "locate", locate)
    checkpoint = SimpleNamespace(manifest={"base_model": {"identity": wanted}}, world={"variants": variants})
    base.base_of(SimpleNamespace(base=given, component=[], cache_dir=None), {}, checkpoint)
    return asked[0]


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, ("org/model", COMMIT, None, COMMIT)),
        ("org/model", ("org/model", COMMIT, None, COMMIT)),
        (HUB, ("org/model", COMMIT, None, COMMIT)),
        ("org/model@v2", ("org/model", "v2", None, None)),
        ("org/mirror", ("org/mirror", "main", None, None)),
    ],
)
def test_a_model_on_the_hub(monkeypatch, given, expected):
    assert located(monkeypatch, given, HUB) == expected


def test_a_local_model_and_its_variant(monkeypatch, tmp_path):
    folder = tmp_path / "my@model"
    folder.mkdir()
    variants = {"unet": "fp16", "vae": None}
    assert located(monkeypatch, str(folder), LOCAL, variants=variants) == (str(folder), "main", "fp16", None)
    url = "https://user@example.org/m.safetensors"
    assert located(monkeypatch, url, LOCAL)[0] == url


@pytest.mark.parametrize(
    "given, wanted, found, variants, words",
    [
        (
            None,
            LOCAL,
            None,
            None,
            r"add --base with the folder or the \.safetensors file that was the task's model\.name",
        ),
        ("./m", HUB, LOCAL, None, f"trained on {HUB}: leave --base out, or write --base {HUB}"),
        ("./m", LOCAL, HUB, {"unet": None}, "name the folder with these very files, the task's model.name"),
        ("./m", LOCAL, HUB, {}, "name the file with this SHA-256, the task's model.name"),
    ],
)
def test_another_base_model_is_refused_with_advice(monkeypatch, given, wanted, found, variants, words):
    with pytest.raises(ModelError, match=words):
        located(monkeypatch, given, wanted, found=found, variants=variants)


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--format diffusers --output m --layout webui", "needs --format lora"),
        ("--format lora --output m.safetensors --base b", "--base has no effect"),
        ("--format lora --output m.safetensors --strength nan", "expected a number"),
        ("--format single_file --output m", "ends in .safetensors"),
        ("--format lora --output m --layout webui", "ends in .safetensors"),
        ("--format lora --output m.safetensors --layout peft", "this format is a folder"),
    ],
)
def test_flags_that_do_not_go_together(flags, words):
    with pytest.raises(TaskError, match=words):
        export._check(export.parser().parse_args(["c", *flags.split()]))


def test_a_signal_says_that_nothing_was_written(tmp_path):
    def content():
        yield b"half"
        raise Interrupted(15, "stopped by SIGTERM; the same command continues")

    with pytest.raises(Interrupted, match="nothing was written to") as caught:
        export._write(tmp_path / "m.safetensors", Streamed(9, content), overwrite=False)
    assert caught.value.code == 143 and list(tmp_path.iterdir()) == []


def test_a_disk_without_room(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "free_bytes", lambda folder: 5_000_000_000)
    content = Streamed(6_000_000_000, lambda: iter(()))
    with pytest.raises(OutputError, match=r"takes about 6\.0 GB, and 5\.0 GB are free"):
        export._require_space(tmp_path / "m.safetensors", {"": content})

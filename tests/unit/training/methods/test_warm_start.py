"""A folder of weights to begin with."""

import hashlib

import pytest

from engine.core.errors import CheckpointError
from engine.training.methods.registry import METHODS, load_parent
from engine.training.methods.warm_start import WarmStart
from tests.unit.results.test_checkpoint import build, write


def load(folder):
    return load_parent(folder, METHODS["lora"])


class TestWarmStart:
    def test_a_lora_alone(self, tmp_path):
        found = load(write(tmp_path, {"pytorch_lora_weights.safetensors": b"lora", "README.md": b""}))
        digest = hashlib.sha256(b"lora").hexdigest()
        hashes = {"pytorch_lora_weights.safetensors": digest}
        assert found == WarmStart(folder=tmp_path, digest=digest, hashes=hashes)
        assert found.content(found.name) == b"lora"

    def test_one_that_changes_meanwhile(self, tmp_path):
        found = load(write(tmp_path, {"a.safetensors": b"lora"}))
        write(tmp_path, {"a.safetensors": b"other"})
        with pytest.raises(CheckpointError, match="changed while the job was running"):
            found.content(found.name)
        (tmp_path / "a.safetensors").unlink()
        with pytest.raises(CheckpointError, match="cannot be read"):
            found.content(found.name)

    @pytest.mark.parametrize("name", ["my_style_v1.safetensors", "adapter_model.safetensors"])
    def test_under_another_name(self, tmp_path, name):
        found = load(write(tmp_path, {name: b"lora", "README.md": b"", ".x.safetensors": b"hidden"}))
        assert list(found.hashes) == [found.name] == [name]
        assert found.digest == hashlib.sha256(b"lora").hexdigest()

    def test_pefts_configuration_belongs_to_it(self, tmp_path):
        files = {"adapter_model.safetensors": b"lora", "adapter_config.json": b"{}"}
        found, digest = load(write(tmp_path, files)), hashlib.sha256(b"lora{}").hexdigest()
        assert (found.content("adapter_config.json"), found.digest) == (b"{}", digest)

    @pytest.mark.parametrize(
        "files, words",
        [
            ({"b.safetensors": b"", "a.safetensors": b""}, r"holds 2 \.safetensors files \(a\.safetensors, b\."),
            ({"adapter_model.bin": b""}, r"adapter_model\.bin, a pickle"),
            ({"a.txt": b""}, r"holds no checkpoint .* or a single \.safetensors file"),
        ],
    )
    def test_no_telling_which_it_is(self, tmp_path, files, words):
        with pytest.raises(CheckpointError, match=words):
            load(write(tmp_path, files))

    def test_a_link_is_not_followed(self, tmp_path):
        write(tmp_path / "other", {"secret.safetensors": b"lora"})
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "a.safetensors").symlink_to(tmp_path / "other" / "secret.safetensors")
        with pytest.raises(CheckpointError, match="is a link or not a file"):
            load(tmp_path / "own")

    @pytest.mark.parametrize("name", ["state.safetensors", "state.json", "global_step.txt", "FINISH"])
    def test_the_rest_of_a_broken_checkpoint_is_no_lora_alone(self, tmp_path, name):
        write(tmp_path, {"pytorch_lora_weights.safetensors": b"lora", name: b""})
        with pytest.raises(CheckpointError, match=f"is incomplete: it has {name} but no manifest.json"):
            load(tmp_path)

    def test_an_output_folder_is_answered_with_its_checkpoint(self, tmp_path):
        write(tmp_path / "checkpoint", build()[0])
        with pytest.raises(CheckpointError, match=f"--checkpoint {tmp_path / 'checkpoint'}$") as caught:
            load(tmp_path)
        assert caught.value.code == 5

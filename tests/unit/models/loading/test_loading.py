"""Loading the parts of a Diffusers folder: what is missing or does not fit is an error, never a random init."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, Qwen2TokenizerFast

from engine.core.errors import ModelError
from engine.models.components.offloading import offload
from engine.models.family import LoadArgs
from engine.models.loading import memory, modules
from engine.models.loading.modules import load_module
from engine.models.loading.tokenizers import load_tokenizer
from tests.support import tiny, tiny_tokenizers

PARTS = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL, "unet": UNet2DConditionModel}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture(params=list(PARTS))
def part(request):
    return request.param


def load(folder, part, variant=None):
    args = LoadArgs(
        folder=folder,
        variants=dict.fromkeys(PARTS, variant),
        dtype=torch.float32,
        device=torch.device("cpu"),
        prediction_type="epsilon",
        caption_tokens=75,
    )
    return load_module(PARTS[part], args, part)


def test_an_adapter_beside_the_weights_is_refused(folder, part):
    """With it transformers would load the base model that its configuration names, from anywhere on the disk."""
    (folder / part / "adapter_config.json").write_text("{}")
    refused(folder, part, r"has an adapter_config\.json: remove it")


def args_for(folder):
    return LoadArgs(
        folder=folder,
        variants=dict.fromkeys(PARTS),
        dtype=torch.float32,
        device=torch.device("cpu"),
        prediction_type="v_prediction",
        caption_tokens=75,
    )


def weights(folder, part):
    (path,) = (folder / part).glob("*.safetensors")
    return path


def refused(folder, part, message=None):
    with pytest.raises(ModelError, match=message) as caught:
        load(folder, part)
    assert part in str(caught.value) and "\n" not in str(caught.value) and caught.value.code == 4


def shards_of(folder, part):
    """Put a part's weights into two shards, and return the path of their index."""
    path = weights(folder, part)
    tensors = load_file(path)
    path.unlink()
    names = {name: f"{path.stem}-0000{1 + k % 2}-of-00002.safetensors" for k, name in enumerate(sorted(tensors))}
    for shard in sorted(set(names.values())):
        save_file({k: v for k, v in tensors.items() if names[k] == shard}, path.parent / shard, {"format": "pt"})
    index = path.with_name(f"{path.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": names | {"a": min(names.values())}}))
    return index


class TestModule:
    def test_whole(self, folder, part):
        assert load(folder, part).training is False

    @pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=str)
    def test_weights_are_copied_once(self, folder, part, stored, monkeypatch):
        """Out of the file's map, or into another dtype: not both."""
        path = weights(folder, part)
        hidden = path.rename(folder / "blob")  # as in the Hub's cache, where only a link is called like a weight file
        save_file({name: tensor.to(stored) for name, tensor in load_file(hidden).items()}, hidden, {"format": "pt"})
        path.symlink_to(hidden)
        before: dict[str, int] = {}
        original = memory.own_memory

        def watched(module):
            before.update((name, tensor.data_ptr()) for name, tensor in module.named_parameters())
            original(module)

        monkeypatch.setattr(modules, "own_memory", watched)
        after = {name: tensor.data_ptr() for name, tensor in load(folder, part).named_parameters()}
        moved = [name for name in before if before[name] != after[name]]
        assert moved == (list(before) if stored == torch.float32 else [])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_weights_go_straight_to_the_device(self, folder, part, dtype):
        """On the device `meta` nothing has memory: no tensor of the component may stay behind on the CPU."""
        meta = torch.device("meta")
        module = load_module(PARTS[part], replace(args_for(folder), dtype=dtype, device=meta), part, meta)
        tensors = [*module.parameters(), *module.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert {tensor.dtype for tensor in module.parameters()} == {dtype}

    def test_files_that_have_changed_since_they_were_hashed(self, folder, part):
        def require_unchanged():
            raise ModelError("changed")

        with pytest.raises(ModelError, match=r"^changed$"):
            load_module(PARTS[part], replace(args_for(folder), require_unchanged=require_unchanged), part)

    def test_without_proc_all_weights_are_copied(self, folder, part, monkeypatch):
        monkeypatch.setattr(memory, "Path", lambda path: folder / "nothing")
        assert memory._file_maps()(torch.zeros(1).data_ptr())

    def test_a_missing_weight_file(self, folder, part):
        weights(folder, part).unlink()
        refused(folder, part, "does not load")

    def test_a_missing_key(self, folder, part):
        path = weights(folder, part)
        tensors = load_file(path)
        removed = sorted(tensors)[len(tensors) // 2]
        del tensors[removed]
        save_file(tensors, path, metadata={"format": "pt"})
        refused(folder, part, "missing keys, e.g. ")

    def test_a_tensor_of_another_shape(self, folder, part):
        path = weights(folder, part)
        tensors = load_file(path)
        changed = sorted(name for name in tensors if tensors[name].ndim == 2)[0]
        tensors[changed] = torch.zeros(3, 5)
        save_file(tensors, path, metadata={"format": "pt"})
        refused(folder, part)

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
    def test_quantised_weights(self, folder, part, dtype):
        path = weights(folder, part)
        tensors = {name: tensor.to(dtype) if tensor.ndim > 1 else tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        refused(folder, part, "is stored as (F8_E4M3|I8), a quantised form")

    def test_in_shards(self, folder, part):
        shards_of(folder, part)
        assert load(folder, part)

    @pytest.mark.parametrize("name", ["../../other.safetensors", "/etc/passwd", "other.safetensors", 7, None])
    def test_an_index_of_shards_that_leads_elsewhere(self, folder, part, name):
        """transformers would load weights that are not hashed."""
        path = shards_of(folder, part)
        index = json.loads(path.read_text())
        shutil.copy(path.parent / index["weight_map"]["a"], path.parent / "other.safetensors")
        shutil.copy(path.parent / index["weight_map"]["a"], folder.parent / "other.safetensors")
        index = index | {"weight_map": index["weight_map"] | {"a": name}} if name else []
        path.write_text(json.dumps(index))
        refused(folder, part)

    @pytest.mark.parametrize("damage", ["empty", "cut header", "cut tensors", "noise", "pickle"])
    def test_a_damaged_weight_file(self, folder, part, damage):
        path = weights(folder, part)
        data = path.read_bytes()
        path.write_bytes(
            {
                "empty": b"",
                "cut header": data[:100],
                "cut tensors": data[:-100],
                "noise": b"\xff" * 1000,
                "pickle": b"\x80\x04cos\nsystem\n." * 20,
            }[damage]
        )
        refused(folder, part)

    @pytest.mark.parametrize("text", [None, "", "{", "[]", "null"])
    def test_a_damaged_configuration(self, folder, part, text):
        path = folder / part / "config.json"
        path.unlink() if text is None else path.write_text(text)
        refused(folder, part)

    @pytest.mark.parametrize(
        "part, change",
        [
            ("unet", {"block_out_channels": 3}),
            ("unet", {"down_block_types": ["NoSuchBlock"]}),
            ("vae", {"latent_channels": "x"}),
            ("text_encoder", {"hidden_size": "x"}),
            ("text_encoder", {"num_attention_heads": 5}),
            # Noticed when the module computes, or by what attaches a LoRA to it.
            ("unet", {"norm_eps": [1]}),
            ("unet", {"norm_eps": float("nan")}),
            ("unet", {"model_type": ["x"]}),
            ("unet", {"model_type": "mixtral"}),
        ],
        ids=str,
    )
    def test_a_configuration_that_makes_no_module(self, folder, part, change):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        refused(folder, part)

    @pytest.mark.parametrize("config", [{"_attn_implementation": "a/b"}, {"x": {"attn_implementation": {"": "a/b"}}}])
    def test_kernels_are_not_downloaded(self, folder, config):
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        refused(folder, "text_encoder", "attn_implementation is .*a/b.*, code from the Hub")

    def test_a_pickle_beside_is_never_touched(self, folder, part):
        (folder / part / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
        (folder / part / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
        load(folder, part)
        weights(folder, part).unlink()
        refused(folder, part)


@pytest.mark.parametrize("offloads", [False, True])
def test_a_weight_that_is_not_finite_is_named_wherever_it_is(offloads):
    denoiser = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ModuleList([torch.nn.Linear(4, 4)]))
    with torch.no_grad():
        denoiser[1][0].weight[2, 1] = float("inf")
    if offloads:
        offload(denoiser, ("1",), torch.device("cpu"))
    family = SimpleNamespace(parts={"vae": torch.nn.Linear(4, 4), "transformer": denoiser})
    with pytest.raises(ModelError, match=r"the base model's transformer has weights 1\.0\.weight that are not finite"):
        modules.require_finite_weights(family)


class TestTokenizer:
    def test_whole(self, folder):
        assert load_tokenizer(CLIPTokenizer, args_for(folder), "tokenizer").model_max_length == 77

    @pytest.mark.parametrize("damage", ["gone", "empty", "garbled"])
    def test_damaged(self, folder, damage):
        for path in (folder / "tokenizer").iterdir():
            if damage == "gone":
                path.unlink()
            else:
                path.write_text("" if damage == "empty" else "{]")
        with pytest.raises(ModelError, match=r"tokenizer does not load|tokenizer has neither"):
            load_tokenizer(CLIPTokenizer, args_for(folder), "tokenizer")

    def test_no_folder(self, folder):
        shutil.rmtree(folder / "tokenizer")
        with pytest.raises(ModelError, match="no tokenizer/"):
            load_tokenizer(CLIPTokenizer, args_for(folder), "tokenizer")

    def test_too_large_to_be_read(self, folder):
        with (folder / "tokenizer" / "tokenizer.json").open("ab") as file:
            file.truncate(100 << 20)
        with pytest.raises(ModelError, match="too large"):
            load_tokenizer(CLIPTokenizer, args_for(folder), "tokenizer")

    def test_words_that_the_text_encoder_does_not_know(self, folder):
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10}))
        with pytest.raises(ModelError, match=r"tokenizer has .* its text encoder 10"):
            load_tokenizer(CLIPTokenizer, args_for(folder), "tokenizer")


def test_qwens_tokenizer(tmp_path):
    args = args_for(tmp_path)
    (tmp_path / "text_encoder").mkdir()
    folder = args.folder / "tokenizer"
    tokenizer = tiny_tokenizers.build_qwen()
    tokenizer.save_pretrained(folder)
    for config in ({"vocab_size": 263}, {"text_config": {"vocab_size": 263}}):
        (args.folder / "text_encoder/config.json").write_text(json.dumps(config))
        assert load_tokenizer(Qwen2TokenizerFast, args, "tokenizer")("ab").input_ids == [64, 65]
    saved = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has neither tokenizer\.json nor vocab\.json and merges\.txt"):
        load_tokenizer(Qwen2TokenizerFast, args, "tokenizer")
    (folder / "vocab.json").write_text(json.dumps(saved["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    found = load_tokenizer(Qwen2TokenizerFast, args, "tokenizer")
    assert found("a<|im_end|>").input_ids == tokenizer("a<|im_end|>").input_ids


@pytest.mark.parametrize("text", [None, "", "{", "[" * 100_000, "[1]", "3", "null"])
def test_a_configuration_is_a_json_object(folder, text):
    path = folder / "unet" / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelError, match=r"config\.json(; expected a folder| is not JSON| is not a JSON object)"):
        args_for(folder).config("unet")


def test_no_librarys_bar_reaches_the_log(folder, capfd):
    """The text encoder and the UNet in several files, which both libraries count."""
    for cls, part in ((CLIPTextModel, "text_encoder"), (UNet2DConditionModel, "unet")):
        whole = cls.from_pretrained(folder / part)
        for path in (folder / part).glob("*.safetensors"):
            path.unlink()
        whole.save_pretrained(folder / part, max_shard_size="20KB")
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1
    capfd.readouterr()
    for part in ("text_encoder", "unet"):
        load(folder, part)
    assert capfd.readouterr() == ("", "")

"""Components of a base model that come from elsewhere: every form of a place, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.core.errors import JobError, ModelError, TaskError
from engine.models import registry
from engine.models.components import hub_files, locating
from engine.models.components.files import files_below
from engine.models.family import LoadArgs
from engine.task.task import Component, Model
from tests.support import single_files, tiny

COMMIT, LATER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def files(other, tmp_path_factory):
    """The other model's VAE in one file, with Diffusers' and with the original names, and its text encoder."""
    folder = tmp_path_factory.mktemp("files")
    vae = load_file(other / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(vae, folder / "vae.safetensors")
    levels = len(json.loads((other / "vae" / "config.json").read_text())["block_out_channels"])
    named = {single_files.vae_name(name, levels): tensor for name, tensor in vae.items()}
    named = {
        name: tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
        for name, tensor in named.items()
    }
    save_file(named | {"loss.logvar": torch.zeros(())}, folder / "original.safetensors")
    shutil.copy(other / "text_encoder" / "model.safetensors", folder / "text.safetensors")
    return folder


def locate(name, report=lambda line: None, pinned=None, weights=True, **components):
    model = Model(name=str(name), components=components)
    return locating.locate(
        model,
        pinned=None,
        pinned_components=pinned or {},
        weights=weights,
        report=report,
        cache_dir=name.parent / "cache",
    )


def load(found):
    args = LoadArgs(
        folder=found.folder,
        variants=found.variants,
        single_file=found.single_file,
        elsewhere=found.places,
        dtype=torch.float32,
        device=torch.device("cpu"),
        prediction_type="epsilon",
        caption_tokens=75,
    )
    return registry.load(found.family, args)


def same(module, other):
    found, expected = module.state_dict(), other.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    "place",
    [
        lambda other, files: {"name": other},
        lambda other, files: {"name": other / "vae"},
        lambda other, files: {"name": other, "subfolder": "vae"},
        lambda other, files: {"name": other.parent, "subfolder": f"{other.name}/vae"},
        lambda other, files: {"name": files / "vae.safetensors"},
        lambda other, files: {"name": files / "original.safetensors"},
    ],
)
def test_a_vae_from_every_kind_of_place(base, other, files, place):
    wanted = place(other, files)
    found = locate(base, vae=Component(**wanted | {"name": str(wanted["name"])}))
    assert found.identities["vae"].startswith("sha256:") and found.revision is None
    model, plain, theirs = load(found), load(locate(base)), load(locate(other))
    assert same(model.parts["vae"], theirs.parts["vae"]) and not same(model.parts["vae"], plain.parts["vae"])
    assert same(model.parts["unet"], plain.parts["unet"])
    assert same(model.load_part("unet"), plain.parts["unet"])


def test_a_place_counts_by_its_content(base, other):
    one, two = (locate(base, vae=Component(name=str(name))) for name in (other, other / "vae"))
    assert one.identities == two.identities != {} and one.identity == two.identity
    assert locate(base, vae=Component(name=str(base))).identities != one.identities


def test_what_is_replaced_need_not_be_there(base, other, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match="has no folder vae/"):
        locate(folder)
    assert same(load(locate(folder, vae=Component(name=str(other)))).parts["vae"], load(locate(other)).parts["vae"])


def test_a_text_encoder_in_transformers_names(base, other, files):
    found = load(locate(base, text_encoder=Component(name=str(files / "text.safetensors"))))
    assert same(found.parts["text_encoder"], load(locate(other)).parts["text_encoder"])


def test_a_denoiser_and_a_tokenizer(base, other):
    found = locate(base, unet=Component(name=str(other)), tokenizer=Component(name=str(other)))
    assert same(load(found).parts["unet"], load(locate(other)).parts["unet"])
    assert found.variants == {"text_encoder": None, "vae": None, "unet": None}


def test_of_a_model_in_one_file(tmp_path):
    whole = single_files.write(tmp_path / "model.safetensors", "sd1")
    other = single_files.write_folder(tmp_path / "other", "sd1", seed=1)
    found = locate(whole, vae=Component(name=str(other)))
    model, theirs = load(found), load(locate(other))
    assert same(model.parts["vae"], theirs.parts["vae"]) and not same(model.parts["unet"], theirs.parts["unet"])
    tensors = {key: one for key, one in load_file(whole).items() if not key.startswith("first_stage_model.")}
    save_file(tensors, tmp_path / "without.safetensors")
    with pytest.raises(ModelError, match="has no VAE; use the whole checkpoint"):
        locate(tmp_path / "without.safetensors")
    found = locate(tmp_path / "without.safetensors", vae=Component(name=str(other)))
    assert same(load(found).parts["vae"], theirs.parts["vae"])


def test_an_optional_text_encoder_needs_its_tokenizer(base, other, monkeypatch):
    """What the base model is without, such as the third one of Stable Diffusion 3, may come from elsewhere."""
    family = registry.FAMILIES["StableDiffusionPipeline"]
    more = {
        "components": (*family.components, "text_encoder_3", "tokenizer_3"),
        "optional": ("text_encoder_3", "tokenizer_3"),
    }
    monkeypatch.setitem(registry.FAMILIES, family.pipeline, replace(family, **more))
    parts = {name: Component(name=str(other), subfolder=name[:-2]) for name in more["optional"]}
    assert locate(base).absent == {*parts} and locate(base, **parts).absent == set()
    assert locate(base, **parts).config("text_encoder_3") == locate(other).config("text_encoder")
    with pytest.raises(ModelError, match=r"components\.text_encoder_3: the base model has no tokenizer_3; name that"):
        locate(base, text_encoder_3=parts["text_encoder_3"])


class TestRefusals:
    def refused(self, base, message, kind=ModelError, **components):
        with pytest.raises(JobError, match=message) as caught:
            locate(base, **{name: Component(**one) for name, one in components.items()})
        assert type(caught.value) is kind and "\n" not in str(caught.value)
        (name,) = components
        assert str(caught.value).startswith(f"model.components.{name}")

    def test_an_unknown_name_with_the_known_ones(self, base, other):
        message = "no part of this name; its parts are scheduler, tokenizer, text_encoder, vae, unet"
        self.refused(base, message, TaskError, transformer={"name": str(other)})

    @pytest.mark.parametrize("subfolder", ["../vae", "/etc", "a/../../b", ".."])
    def test_a_folder_outside(self, base, other, subfolder):
        self.refused(base, "a folder inside its name", TaskError, vae={"name": str(other), "subfolder": subfolder})

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"subfolder": "missing"}, "there is no folder .*/missing, or nothing in it"),
            ({"variant": "fp16"}, "has no fp16 weights: leave variant out"),
            ({"subfolder": "unet"}, "/unet is a UNet2DConditionModel, expected AutoencoderKL: it is another"),
            ({"subfolder": "text_encoder"}, "/text_encoder is a CLIPTextModel"),
            ({"subfolder": "scheduler"}, "no safetensors weights"),
        ],
    )
    def test_of_a_pipelines_folder(self, base, other, options, message):
        self.refused(base, message, vae={"name": str(other), **options})

    def test_a_place_that_does_not_exist(self, base, tmp_path):
        for name in ("vae", "vae.safetensors"):
            self.refused(base, "neither a folder nor a file", vae={"name": str(tmp_path / name)})

    def test_pickles(self, base, other, tmp_path):
        (tmp_path / "vae.pt").write_bytes(b"PK\x03\x04")
        self.refused(base, r"vae\.pt is a pickle, which can run code", vae={"name": str(tmp_path / "vae.pt")})
        (tmp_path / "vae.safetensors").write_bytes(b"PK\x03\x04")
        self.refused(base, "is a pickled checkpoint", vae={"name": str(tmp_path / "vae.safetensors")})
        folder = shutil.copytree(other / "vae", tmp_path / "vae")
        (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
        self.refused(base, "only pickled weights", vae={"name": str(folder)})

    def test_missing_shards(self, base, other, tmp_path):
        folder = shutil.copytree(other / "vae", tmp_path / "vae")
        weights = folder / "diffusion_pytorch_model.safetensors"
        weights.rename(folder / "diffusion_pytorch_model-00002-of-00002.safetensors")
        message = r"missing are diffusion_pytorch_model-00001-of-00002\.safetensors"
        self.refused(base, message, vae={"name": str(folder)})

    @pytest.mark.parametrize("content", ["", "[]", "[" * 10_000])
    def test_malformed_configurations(self, base, other, tmp_path, content):
        folder = shutil.copytree(other / "vae", tmp_path / "vae")
        (folder / "config.json").write_text(content)
        self.refused(base, "is not (a )?JSON", vae={"name": str(folder)})

    def test_a_huge_configuration(self, base, other, tmp_path):
        folder = shutil.copytree(other / "vae", tmp_path / "vae")
        with (folder / "config.json").open("ab") as file:
            file.truncate(65 << 20)
        self.refused(base, "too large for a configuration", vae={"name": str(folder)})

    @pytest.mark.parametrize(
        "tensors, message",
        [
            ({"unet.x.lora_A.weight": (4, 4)}, "is a LoRA, not a base model; expected the vae alone"),
            ({"model.diffusion_model.input_blocks.0.0.weight": (4, 4)}, "is a whole model; expected the vae alone"),
            ({"input_blocks.0.0.weight": (4, 4)}, "is a UNet with the original names; expected"),
            ({"double_blocks.0.x": (4, 4)}, "is a Flux, Chroma or HunyuanVideo model; expected"),
        ],
    )
    def test_files_of_something_else(self, base, tmp_path, tensors, message):
        path = single_files.write_header(tmp_path / "x.safetensors", tensors)
        self.refused(base, message, vae={"name": str(path)})

    def test_a_quantised_file(self, base, tmp_path):
        path = single_files.write_header(tmp_path / "x.safetensors", {"decoder.x": (4,)}, dtype="F8_E4M3")
        self.refused(base, "stored as F8_E4M3, a quantised form", vae={"name": str(path)})

    def test_a_file_for_what_has_no_weights(self, base, files):
        self.refused(
            base, "a file of its own holds a part with weights", tokenizer={"name": str(files / "vae.safetensors")}
        )


class TestOfAnotherModel:
    """Noticed from the configurations of the composed model, before anything is loaded."""

    MESSAGE = "takes 4 channels and gives 4, its VAE has 16"

    def test_a_folder(self, base, other, tmp_path):
        folder = shutil.copytree(other / "vae", tmp_path / "vae")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
        with pytest.raises(ModelError, match=self.MESSAGE):
            locate(base, vae=Component(name=str(folder)))

    @pytest.mark.parametrize("name", ["vae", "original"])
    def test_a_file(self, base, files, tmp_path, name):
        shapes = {key: tuple(one.shape) for key, one in load_file(files / f"{name}.safetensors").items()}
        shapes["decoder.conv_in.weight"] = (32, 16, 3, 3)
        path = single_files.write_header(tmp_path / "x.safetensors", shapes)
        with pytest.raises(ModelError, match=self.MESSAGE):
            locate(base, vae=Component(name=str(path)))

    def test_weights_of_another_shape_are_noticed_when_loaded(self, base, files, tmp_path):
        tensors = load_file(files / "vae.safetensors")
        tensors["decoder.conv_out.bias"] = torch.zeros(7)
        save_file(tensors, tmp_path / "vae.safetensors")
        found = locate(base, vae=Component(name=str(tmp_path / "vae.safetensors")))
        with pytest.raises(ModelError, match=r"vae has 1 mismatched keys, e\.g\. .*decoder.conv_out.bias|vae does not"):
            load(found)


class TestHub:
    @pytest.fixture
    def downloads(self, other, monkeypatch, tmp_path):
        """What is downloaded of a Hub that holds the other model."""
        found = []

        def download(name, commit, files):
            found.append((name, commit, sorted(files)))
            return other

        monkeypatch.setattr(hub_files, "download", download)
        monkeypatch.setattr(hub_files, "list_files", lambda name, commit, folder: files_below(folder))
        monkeypatch.setattr("engine.data.fetch.hub.resolve_commit", lambda *args: COMMIT)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        return found

    def test_of_a_whole_model(self, base, downloads):
        found = locate(base, vae=Component(name="me/model", revision="v2"))
        assert found.identities == {"vae": f"me/model@{COMMIT}/vae"} and found.elsewhere["vae"].revision == COMMIT
        names = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
        assert downloads[-1] == ("me/model", COMMIT, names)
        assert found.elsewhere["vae"].resolved == {
            "identity": f"me/model@{COMMIT}/vae",
            "revision": COMMIT,
            "name": "me/model",
            "subfolder": None,
            "variant": None,
            "branch": "v2",
        }

    def test_a_plan_downloads_no_weights_and_finds_the_same(self, base, downloads):
        planned, found = (locate(base, weights=weights, vae=Component(name="me/m")) for weights in (False, True))
        assert downloads[1][2] == ["vae/config.json"]
        assert (planned.identities, planned.variants) == (found.identities, found.variants)

    def test_a_pinned_commit(self, base, downloads):
        found = locate(base, pinned={"vae": LATER}, vae=Component(name="me/m"))
        assert found.identities == {"vae": f"me/m@{LATER}/vae"} and {commit for _, commit, _ in downloads} == {LATER}

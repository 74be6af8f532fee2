"""The base model on disk: which files, where from, and what identifies them."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest

from engine.core.console import NOTE
from engine.core.errors import ModelError
from engine.core.limits import Limits
from engine.models import registry
from engine.models.components import files as base_model_files
from engine.models.components import locating
from engine.task.task import Model
from tests.support import single_files
from tests.support.servers import serving

SD = registry.FAMILIES["StableDiffusionPipeline"]
COMMIT, LATER = "a" * 40, "b" * 40
SIDE = [
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
PLAIN = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
FP16 = [name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN]
SHARDS = [
    *(f"unet/diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)),
    "unet/diffusion_pytorch_model.safetensors.index.json",
]
BF16_SHARD = [
    "unet/diffusion_pytorch_model.bf16-00001-of-00001.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.bf16.json",
]
TEXT_SHARDS = [
    *(f"text_encoder/model-0000{k}-of-00002.safetensors" for k in (1, 2)),
    "text_encoder/model.safetensors.index.json",
]
UNUSED = [
    "README.md",
    "flux1-dev.safetensors",
    "ae.safetensors",
    "unet/flux1-dev.safetensors",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "safety_checker/model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/nested/diffusion_pytorch_model.safetensors",
    "text_encoder/flax_model.msgpack",
]


def select(names, variant=None, *, family=SD, index=MappingProxyType({})):
    return base_model_files.select_files([*names, "model_index.json"], family, variant, "m", index=index)


class TestSelectFiles:
    @pytest.mark.parametrize(
        "names, variant, weights, variants",
        [
            (PLAIN, None, PLAIN, (None, None, None)),
            (PLAIN + FP16, None, PLAIN, (None, None, None)),
            (PLAIN + FP16, "fp16", FP16, ("fp16", "fp16", "fp16")),
            (PLAIN + FP16[1:2], "fp16", [PLAIN[0], FP16[1], PLAIN[2]], (None, "fp16", None)),  # falls back
            ([PLAIN[0], *SHARDS, PLAIN[2]], None, [PLAIN[0], *SHARDS, PLAIN[2]], (None, None, None)),
            ([*TEXT_SHARDS, *PLAIN[1:]], None, [*TEXT_SHARDS, *PLAIN[1:]], (None, None, None)),
            (
                [*PLAIN, *BF16_SHARD],
                "bf16",
                [PLAIN[0], *BF16_SHARD, PLAIN[2]],
                (None, "bf16", None),
            ),
        ],
    )
    def test_table(self, names, variant, weights, variants):
        selected, found = select([*names, *SIDE, *UNUSED], variant)
        assert sorted(selected) == sorted(["model_index.json", *SIDE, *weights])
        assert found == dict(zip(("text_encoder", "unet", "vae"), variants, strict=True))

    @pytest.mark.parametrize(
        "names, message",
        [
            ([*SIDE, *PLAIN[:2]], r"no safetensors weights in vae/$"),
            (
                [*SIDE, *FP16],
                r"in text_encoder/; it has text_encoder/model\.fp16\.safetensors: set model.variant to the variant",
            ),
            ([*SIDE, *PLAIN[:2], "vae/diffusion_pytorch_model.bin"], r"only pickled weights in vae/.*convert it"),
            ([*SIDE, *PLAIN[:2], "vae/diffusion_pytorch_model.ckpt"], r"only pickled weights in vae/"),
            ([n for n in SIDE if "tokenizer" not in n] + PLAIN, r"is incomplete: it has no folder tokenizer/"),
            ([], r"no folder scheduler/"),
            (
                [*SIDE, PLAIN[0], *SHARDS[1:], PLAIN[2]],
                r"is incomplete: missing are unet/diffusion_pytorch_model-00001-of-00002\.safetensors: download",
            ),
            (
                [*SIDE, PLAIN[0], *SHARDS[:2], PLAIN[2]],
                r"the shards unet/diffusion_pytorch_model-… have no index .*\.safetensors\.index\.json",
            ),
            (
                [*SIDE, *PLAIN[1:], "text_encoder/model-00001-of-99999.safetensors"],
                r"missing are text_encoder/model-00002-of-99999\.safetensors, .* and 99,995 more: download",
            ),
        ],
    )
    def test_what_is_missing_is_said(self, names, message):
        with pytest.raises(ModelError, match=f"the base model m .*{message}") as caught:
            select(names)
        assert caught.value.code == 4


def test_a_variant_that_no_component_has_is_refused():
    with pytest.raises(ModelError, match=r"has no fp16 weights: leave model\.variant out"):
        select([*SIDE, *PLAIN], "fp16")


WITH_OPTIONAL = replace(
    SD,
    components=(*SD.components, "text_encoder_3", "tokenizer_3"),
    weighted=(*SD.weighted, "text_encoder_3"),
    optional=("text_encoder_3", "tokenizer_3"),
    classes={"text_encoder_3": ("T5EncoderModel",)},
)
NAMED = {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5TokenizerFast"]}
THIRD = ["text_encoder_3/config.json", "text_encoder_3/model.safetensors", "tokenizer_3/spiece.model"]


class TestOptionalComponents:
    @pytest.mark.parametrize("index", [{}, {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}])
    def test_what_the_index_does_not_name_is_not_selected(self, index):
        for more in ([], THIRD):
            selected, variants = select([*SIDE, *PLAIN, *more], family=WITH_OPTIONAL, index=index)
            assert not [name for name in selected if "_3" in name] and "text_encoder_3" not in variants
        absent = base_model_files.absent_components(index, WITH_OPTIONAL)
        assert absent == {"text_encoder_3", "tokenizer_3"}

    def test_what_it_names_is_selected_and_has_to_be_there(self):
        selected, variants = select([*SIDE, *PLAIN, *THIRD], family=WITH_OPTIONAL, index=NAMED)
        assert set(selected) >= set(THIRD) and "text_encoder_3" in variants
        for name in ("text_encoder_3", "tokenizer_3"):
            there = [path for path in THIRD if not path.startswith(f"{name}/")]
            with pytest.raises(ModelError, match=f"incomplete: it has no folder {name}/"):
                select([*SIDE, *PLAIN, *there], family=WITH_OPTIONAL, index=NAMED)

    def test_a_component_of_another_class_is_refused_by_name(self):
        index = NAMED | {"text_encoder_3": ["transformers", "UMT5EncoderModel"]}
        with pytest.raises(
            ModelError,
            match=r"has a UMT5EncoderModel as its text_encoder_3, expected T5EncoderModel: it is another kind",
        ):
            select([*SIDE, *PLAIN, *THIRD], family=WITH_OPTIONAL, index=index)

    @pytest.mark.parametrize("there, missing", [("text_encoder_3", "tokenizer_3"), ("tokenizer_3", "text_encoder_3")])
    def test_a_text_encoder_and_its_tokenizer_go_together(self, there, missing):
        with pytest.raises(ModelError, match=f"has a {there}, but no {missing} .*: name one under model.components"):
            base_model_files.require_pairs({missing, "transformer_2"})
        base_model_files.require_pairs({there, missing, "transformer_2"})

    def test_a_model_without_it_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setitem(registry.FAMILIES, SD.pipeline, WITH_OPTIONAL)
        base = locate(write_model(tmp_path))
        assert not base.has("text_encoder_3") and base.has("text_encoder")
        assert base.config("text_encoder_3") == {} and base.absent == {"text_encoder_3", "tokenizer_3"}


def write_model(folder, names=(*SIDE, *PLAIN), class_name="StableDiffusionPipeline", scheduler=None):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # A text encoder's width is 512 unless it says otherwise, a UNet's 1280.
        # Which scheduler it is, its own file says.
        config = {"file": name, "cross_attention_dim": 512, "_class_name": "PNDMScheduler"}
        (folder / name).write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    if scheduler is not None:
        (folder / "scheduler" / "scheduler_config.json").write_text(
            json.dumps({"_class_name": "PNDMScheduler"} | scheduler)
        )
    return folder


def locate(folder, variant=None, report=lambda line: None):
    task = Model(name=str(folder), variant=variant)
    return locating.locate(task, pinned=None, weights=True, report=report, cache_dir=folder / "cache")


class TestFolder:
    def test_identity_is_the_content_of_the_needed_files(self, tmp_path):
        one = write_model(tmp_path / "one")
        other = write_model(tmp_path / "somewhere" / "else")
        (other / "README.md").write_text("other files do not count")
        (other / "unet" / "diffusion_pytorch_model.bin").write_text("x")
        found = locate(one)
        assert found.identity == locate(other).identity
        assert found.identity.startswith("sha256:") and found.revision is None
        seen = {found.identity}
        for name in (*SIDE, *PLAIN, "model_index.json"):
            before = (one / name).read_text()
            (one / name).write_text(before + " ")
            seen.add(locate(one).identity)
            (one / name).write_text(before)
        assert len(seen) == 2 + len(SIDE) + len(PLAIN)

    def test_the_variant_is_another_identity(self, tmp_path):
        folder = write_model(tmp_path, (*SIDE, *PLAIN, *FP16))
        assert locate(folder).identity != locate(folder, "fp16").identity

    def test_links_as_in_the_hubs_cache_are_followed(self, tmp_path):
        folder = write_model(tmp_path / "model")
        expected = locate(folder).identity
        path = folder / PLAIN[1]
        path.rename(tmp_path / "blob")
        path.symlink_to(tmp_path / "blob")
        assert locate(folder).identity == expected

    def test_the_hub_caches_folder_of_it(self, tmp_path):
        expected = locate(write_model(tmp_path / "model")).identity
        write_model(tmp_path / "models--me--model/snapshots/abc")
        (tmp_path / "models--me--model/refs").mkdir()
        (tmp_path / "models--me--model/refs/main").write_text("abc")
        found = locate(tmp_path / "models--me--model")
        assert (found.identity, found.folder.name) == (expected, "abc")

    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda path: None, "is neither a folder nor a file .is it mounted"),
            (lambda path: path.write_text(""), "model is not a safetensors file"),
            (lambda path: path.mkdir(), r"has no .*/model_index\.json"),
            (
                lambda path: write_model(path, class_name="AuraFlowPipeline"),
                "is a 'AuraFlowPipeline'; this program trains",
            ),
            (lambda path: write_model(path, class_name=None), "is a None"),
            (lambda path: write_model(path, class_name=["x"]), r"is a \['x'\]"),
            (lambda path: (path.mkdir(), (path / "model_index.json").write_text("{")), "is not JSON"),
            (lambda path: (path.mkdir(), (path / "model_index.json").write_text("[]")), "is not a JSON object"),
            (lambda path: (path.mkdir(), (path / "model_index.json").write_text("[" * 100_000)), "is not JSON"),
        ],
    )
    def test_what_is_no_model(self, tmp_path, make, message):
        make(tmp_path / "model")
        with pytest.raises(ModelError, match=message):
            locate(tmp_path / "model")

    @pytest.mark.parametrize(
        "scheduler, expected",
        [
            ({}, "epsilon"),
            ({"prediction_type": "epsilon"}, "epsilon"),
            ({"prediction_type": "v_prediction"}, "v_prediction"),
        ],
    )
    def test_the_prediction_type_is_the_schedulers(self, tmp_path, scheduler, expected):
        assert locate(write_model(tmp_path, scheduler=scheduler)).prediction_type == expected

    @pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
    def test_other_kinds_of_diffusion_are_refused_before_anything_is_loaded(self, tmp_path, name):
        with pytest.raises(ModelError, match=f"{name} has no betas"):
            locate(write_model(tmp_path, scheduler={"_class_name": name}))

    @pytest.mark.parametrize("name", ["RePaintScheduler", "Nonsense", None, 3])
    def test_so_is_what_stable_diffusion_is_not_drawn_with(self, tmp_path, name):
        with pytest.raises(ModelError, match=f"scheduler '{name}' is not a Diffusers scheduler"):
            locate(write_model(tmp_path, scheduler={"_class_name": name}))

    def test_a_scheduler_that_needs_a_package_is_replaced_and_said(self, tmp_path):
        said = []
        locate(write_model(tmp_path, scheduler={"_class_name": "DPMSolverSDEScheduler"}), report=said.append)
        (line,) = said
        assert line.startswith(NOTE)  # so that it is among the warnings of result.json
        assert "DPMSolverSDEScheduler needs torchsde" in line and "with DPMSolverMultistepScheduler" in line

    @pytest.mark.parametrize("found", ["sample", None, 3, ["epsilon"]])
    def test_other_prediction_types_are_refused(self, tmp_path, found):
        base = locate(write_model(tmp_path, scheduler={"prediction_type": found}))
        with pytest.raises(ModelError, match="epsilon and v_prediction can be trained"):
            _ = base.prediction_type

    def test_the_noise_schedules_length(self, tmp_path):
        assert locate(write_model(tmp_path / "a", scheduler={})).num_train_timesteps == 1000
        assert locate(write_model(tmp_path / "b", scheduler={"num_train_timesteps": 600})).num_train_timesteps == 600

    @pytest.mark.parametrize("found", ["many", None, 0, -1, 10**13, True, 1000.0, [1000]])
    def test_malformed_counts_of_timesteps_are_refused(self, tmp_path, found):
        base = locate(write_model(tmp_path, scheduler={"num_train_timesteps": found}))
        with pytest.raises(ModelError, match=r"num_train_timesteps is .*download it again"):
            _ = base.num_train_timesteps

    @pytest.mark.parametrize("found", [10**6, 2, -1, "1", 1.0, True])
    def test_steps_behind_the_last_are_refused(self, tmp_path, found):
        with pytest.raises(ModelError, match=r"steps_offset is .*download it again"):
            locate(write_model(tmp_path, scheduler={"steps_offset": found}))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return single_files.write(tmp_path_factory.mktemp("file") / "model.safetensors", "sd1")


class TestFile:
    def locate(self, name, tmp_path, report=lambda line: None, limits=None, **task):
        task = Model(name=str(name), **task)
        return locating.locate(
            task, pinned=None, weights=False, report=report, cache_dir=tmp_path / "cache", limits=limits or Limits()
        )

    def test_identity_is_the_content(self, file, tmp_path):
        base = self.locate(file, tmp_path)
        assert base.identity == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" and base.revision is None
        assert base.family is SD and base.variants == {} and base.prediction_type == "epsilon"
        assert base.num_train_timesteps == 1000 and base.config("unet")["cross_attention_dim"] == 64
        copy = tmp_path / "elsewhere.safetensors"
        copy.write_bytes(file.read_bytes())
        assert self.locate(copy, tmp_path).identity == base.identity

    def test_another_ending_of_the_name(self, file, tmp_path):
        other = tmp_path / "model.sft"
        other.write_bytes(file.read_bytes())
        assert self.locate(other, tmp_path).identity == self.locate(file, tmp_path).identity

    def test_variant_and_revision_are_ignored_and_that_is_said(self, file, tmp_path):
        for task in ({"variant": "fp16"}, {"revision": "v2"}):
            lines = []
            assert self.locate(file, tmp_path, lines.append, **task).identity == self.locate(file, tmp_path).identity
            assert any("model.variant and model.revision are ignored" in line for line in lines)

    @pytest.mark.parametrize(
        "name, message",
        [
            ("/nowhere/model.safetensors", r"model.safetensors does not exist \(nor /nowhere: is it mounted"),
            ("/nowhere/model.ckpt", "model.ckpt does not exist"),
            ("https://huggingface.co/me/model", "write the Hub ID alone, me/model"),
            ("https://example.org/model.ckpt?type=Model", r"https://example.org/model.ckpt\?… is a pickle.*convert it"),
        ],
    )
    def test_what_is_no_file(self, tmp_path, name, message):
        with pytest.raises(ModelError, match=message):
            self.locate(name, tmp_path)

    def test_a_pickle_by_its_name(self, tmp_path):
        (tmp_path / "model.ckpt").write_bytes(b"anything")
        with pytest.raises(ModelError, match=r"model\.ckpt is a pickle, which can run code; convert it to safetensors"):
            self.locate(tmp_path / "model.ckpt", tmp_path)

    def test_inpainting_is_refused_by_the_family_too(self, tmp_path):
        modules = single_files.build_modules("sd1")
        shapes = {key: tuple(t.shape) for key, t in single_files.original_state(modules, "sd1").items()}
        for key in shapes:
            if key.endswith("decoder.conv_in.weight"):
                shapes[key] = (64, 16, 3, 3)
        path = single_files.write_header(tmp_path / "m.safetensors", shapes)
        with pytest.raises(ModelError, match="takes 4 channels and gives 4, its VAE has 16"):
            self.locate(path, tmp_path)

    def test_by_url(self, file, tmp_path):
        lines = []
        with serving(file.read_bytes()) as (url, asked):
            for _ in range(2):
                found = self.locate(f"{url}?key=secret", tmp_path, lines.append, Limits(allow_private_urls=True))
            assert found.identity == self.locate(file, tmp_path).identity and len(asked) == 1
            assert "secret" not in "".join(lines)
            with found.single_file.path.open("r+b") as damaged:
                damaged.seek(-1, 2)
                damaged.write(b"!")
            with pytest.raises(ModelError, match="is damaged; delete it and run again"):
                self.locate(f"{url}?key=secret", tmp_path, limits=Limits(allow_private_urls=True))

    @pytest.mark.parametrize(
        "body, message", [(b"<html>log in</html>", "is a web page, not"), (b"PK\x03\x04...", "is a pickled checkpoint")]
    )
    def test_a_url_of_something_else(self, tmp_path, body, message):
        with serving(body) as (url, _), pytest.raises(ModelError, match=f"{url} {message}"):
            self.locate(url, tmp_path, limits=Limits(allow_private_urls=True))


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch, tmp_path):
        """A Hub that holds one model, and what it was asked."""
        import huggingface_hub
        from huggingface_hub import constants

        folder = write_model(tmp_path / "snapshot", (*SIDE, *PLAIN, *FP16, *UNUSED))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        asked = SimpleNamespace(folder=folder, downloads=[], listings=[], questions=[], offline=False)

        def snapshot_download(name, *, revision, allow_patterns):
            asked.downloads.append((name, revision, sorted(allow_patterns)))
            return str(folder)

        class Api:
            def list_repo_files(self, name, *, revision):
                assert not asked.offline
                asked.listings.append((name, revision))
                return names

            def repo_info(self, name, *, repo_type, revision):
                assert not asked.offline
                asked.questions.append((name, repo_type, revision))
                return SimpleNamespace(sha=COMMIT)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(constants, "is_offline_mode", lambda: asked.offline)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        return asked

    def locate(self, *, pinned=None, weights=True, **task):
        return locating.locate(
            Model(name="some/model", **task),
            pinned=pinned,
            weights=weights,
            report=lambda line: None,
            cache_dir=Path("/nowhere"),
        )

    def test_a_branch_becomes_a_commit_and_only_needed_files_are_downloaded(self, hub):
        found = self.locate()
        assert (found.identity, found.revision, found.folder) == (f"some/model@{COMMIT}", COMMIT, hub.folder)
        assert hub.questions == [("some/model", "model", "main")]
        assert hub.listings == [("some/model", COMMIT)]
        assert hub.downloads == [
            ("some/model", COMMIT, ["model_index.json"]),
            ("some/model", COMMIT, sorted(["model_index.json", *SIDE, *PLAIN])),
        ]

    def test_a_pinned_commit_wins_and_nothing_is_asked(self, hub):
        found = self.locate(pinned=LATER, revision="main")
        assert found.identity == f"some/model@{LATER}" and hub.questions == []
        assert {revision for _, revision, _ in hub.downloads} == {LATER}

    def test_a_commit_is_taken_as_it_is(self, hub):
        assert self.locate(revision=LATER).revision == LATER and hub.questions == []

    def test_a_plan_downloads_no_weights(self, hub):
        self.locate(weights=False)
        assert hub.downloads[-1][2] == sorted(["model_index.json", *SIDE])

    def test_the_variant_is_downloaded_alone(self, hub):
        found = self.locate(variant="fp16")
        assert hub.downloads[-1][2] == sorted(["model_index.json", *SIDE, *FP16])
        assert set(found.variants.values()) == {"fp16"}

    def test_offline_takes_what_the_cache_holds(self, hub):
        online = self.locate()
        hub.offline = True
        hub.listings.clear()
        assert self.locate() == online, "the branch's commit was noted when it was resolved"
        assert hub.listings == []

    def test_offline_with_an_empty_cache(self, hub):
        hub.offline = True
        with pytest.raises(ModelError, match=r"not in the cache.*HF_HUB_OFFLINE"):
            self.locate()

"""What --plan finds in headers is what the job finds in modules."""

import json
import re
import struct
from types import SimpleNamespace

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from engine.core.errors import CheckpointError, ModelError, TaskError
from engine.models import registry
from engine.models.base_model import BaseModel
from engine.models.families.sd.spec import SPEC
from engine.task.task import Lora, TrainArgs
from engine.training.methods.lora import checks
from engine.training.methods.lora.adapter import attach
from engine.training.methods.lora.formats.files import diffusers_state
from engine.training.methods.lora.formats.start_file import find_start
from engine.training.methods.lora.targets import find_targets
from engine.training.methods.warm_start import read
from tests.support import tiny
from tests.unit.results.test_checkpoint import write

TARGETS = [
    None,
    ("to_q",),
    ("to_q", "nothing_such"),
    ("conv1", "conv_in"),
    r".*(to_q|conv1|time_embedding\.linear_1)",
    r".*transformer_blocks\..*\.to_k",
    ("nothing_such",),
    ("attn1",),
    ("norm1",),
    ("mid_block",),
    r".*",
    r".*\.weight",
    "",
]


@pytest.fixture(scope="module", params=["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    build = tiny.build_sd if name == "StableDiffusionPipeline" else tiny.build_sdxl
    return build(tmp_path_factory.mktemp("model"), variant="fp16")


def arguments(folder, name, *, variant=None, parent=None, text=False, single_file=None, **options):
    entry = registry.FAMILIES[name]
    variants = dict.fromkeys(entry.weighted, variant)
    base = BaseModel(
        folder=folder, family=entry, variants=variants, identity="", revision=None, single_file=single_file
    )
    task = SimpleNamespace(lora=Lora(**options), train_args=TrainArgs(train_text_encoder=text))
    return base, task, parent


@pytest.fixture(scope="module")
def denoiser(folder):
    return UNet2DConditionModel.from_pretrained(folder / "unet")


def outcome(call):
    try:
        return sorted(call())
    except TaskError as error:
        return re.sub(
            r"(?<=is )of type \w+|(?<=is )a group of layers|(?<=is )of another type( \(.*?\))?", "…", str(error)
        )


class TestTargets:
    @pytest.mark.parametrize("variant", [None, "fp16"])
    @pytest.mark.parametrize("targets", TARGETS, ids=str)
    def test_are_those_of_the_job(self, folder, name, denoiser, targets, variant):
        base, task, _ = arguments(folder, name, variant=variant, target_modules=targets)
        shapes = checks.weight_shapes(base, SPEC.denoiser)
        wanted = SPEC.targets_of(SPEC.denoiser, task.lora.target_modules)
        found = outcome(lambda: checks.target_shapes(wanted, shapes))
        expected = outcome(lambda: find_targets(denoiser, wanted))
        assert isinstance(found, list) == isinstance(expected, list)
        if targets != r".*":  # which names a module without weights first
            assert found == expected

    def test_sharded_weights_count_together(self, folder, name, denoiser, tmp_path):
        denoiser.save_pretrained(tmp_path / "unet", max_shard_size="100KB")
        assert len([*(tmp_path / "unet").glob("*.safetensors")]) > 1
        assert checks.check(*arguments(tmp_path, name, target_modules=("to_q",))) == []

    def test_some_of_the_shards_say_nothing(self, folder, name, denoiser, tmp_path):
        """Of a download that was interrupted: the others may have what the first has not."""
        denoiser.save_pretrained(tmp_path / "unet", max_shard_size="100KB")
        sorted((tmp_path / "unet").glob("*.safetensors"))[-1].unlink()
        (line,) = checks.check(*arguments(tmp_path, name, target_modules=("nothing_such",)))
        assert "checked when the job starts" in line

    def test_without_weights_it_is_said(self, name, tmp_path):
        (line,) = checks.check(*arguments(tmp_path, name, target_modules=("nothing_such",)))
        assert line.startswith("note: lora.target_modules is checked when the job starts") and "downloaded" in line
        (line,) = checks.check(*arguments(tmp_path, name, single_file=object()))
        assert "in one file" in line

    def test_damaged_weights_are_the_models_fault(self, name, tmp_path):
        (tmp_path / "unet").mkdir()
        (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(ModelError, match="unet/diffusion_pytorch_model"):
            checks.check(*arguments(tmp_path, name))


class TestLoftq:
    def check(self, folder, name, **options):
        return checks.check(*arguments(folder, name, init_lora_weights="loftq", **options))

    def test_takes_linear_layers(self, folder, name):
        assert self.check(folder, name) == self.check(folder, name, target_modules=("to_q", "conv1")) == []

    def test_has_nothing_to_do_without(self, folder, name):
        (line,) = self.check(folder, name, target_modules=("conv1",))
        assert line == "note: lora.init_lora_weights 'loftq' has no effect: no target is a linear layer"

    def test_a_rank_beyond_a_layers(self, folder, name, denoiser):
        with pytest.raises(TaskError) as job_says:
            attach({SPEC.denoiser: denoiser}, Lora(rank=10**4, init_lora_weights="loftq"), 0, spec=SPEC)
        with pytest.raises(TaskError) as plan_says:
            self.check(folder, name, rank=10**4)
        assert str(plan_says.value) == str(job_says.value)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """LoRA files as the program writes them: the denoiser's, and with the first text encoder's."""
    files = {}
    for text in (False, True):
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        encoder = {"text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder")} if text else {}
        adapter = attach({SPEC.denoiser: unet, **encoder}, Lora(rank=3, target_modules=("to_q", "conv1")), 0, spec=SPEC)
        path = tmp_path_factory.mktemp("lora") / "x.safetensors"
        save_file(diffusers_state(adapter), path)
        files[text] = path.read_bytes()
    return files


@pytest.fixture
def start(tmp_path):
    """Check a LoRA to start from, with PEFT's configuration if one is given."""

    def check(folder, name, data, config=None, **options):
        given = {"rank": 3, "target_modules": ("to_q", "conv1"), **options}
        files = {"adapter_model.safetensors": data} | ({"adapter_config.json": config} if config else {})
        parent = read(write(tmp_path / "start", files), find_start, main_file="x")
        return checks.check(*arguments(folder, name, parent=parent, **given))

    return check


class TestWarmStart:
    def test_one_that_fits(self, start, folder, name, trained):
        assert start(folder, name, trained[False]) == start(folder, name, trained[False], rank=4) == []
        if name == "StableDiffusionPipeline":
            assert start(folder, name, trained[True], text=True) == []

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"rank": 2}, r"rank 3, but lora.rank is 2 \(at .*\): set it to 3 or more"),
            ({"target_modules": ("to_q",)}, "lora.target_modules excludes"),
            ({"target_modules": ("to_q", "to_k", "conv1")}, "lora.target_modules requires"),
            ({"text": True}, "train_text_encoder requires"),
        ],
    )
    def test_one_of_another_adapter(self, start, folder, name, trained, changes, words):
        with pytest.raises(CheckpointError, match=words):
            start(folder, name, trained[False], **changes)

    def test_none_on_a_quantised_base(self, start, folder, name, trained):
        with pytest.raises(CheckpointError, match="'loftq' trains on quantised"):
            start(folder, name, trained[False], init_lora_weights="loftq")

    def test_text_encoders_that_are_not_trained(self, start, folder, name, trained):
        with pytest.raises(CheckpointError, match="also adapts text_encoder"):
            start(folder, name, trained[True])

    @pytest.mark.parametrize("data", [b"", b"no safetensors", struct.pack("<Q", 2) + b"[]"])
    def test_no_such_file(self, start, folder, name, data):
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            start(folder, name, data)

    def test_another_kind_is_named_without_weights_too(self, start, name, tmp_path):
        with pytest.raises(CheckpointError, match="is a LoHa"):
            start(tmp_path, name, one_tensor("lora_unet_down_blocks_0.hada_w1_a"))

    def test_kohyas_names_are_checked_with_the_weights(self, start, folder, name, tmp_path):
        data = one_tensor("lora_unet_down_blocks_0.lora_down.weight")
        assert any("when the job starts" in line for line in start(tmp_path, name, data))
        with pytest.raises(CheckpointError, match="lora_unet_down_blocks_0 is none of the base model's layers"):
            start(folder, name, data)


def one_tensor(key):
    header = json.dumps({key: {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 4

"""`export`: whole models and LoRA files that other programs read, made by the real program from real checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file

from engine.models import single_file
from engine.models.registry import FAMILIES
from engine.models.single_file import weights as single_file_weights
from tests.support import single_files
from tests.support.harness import changed, run_job, snapshot, succeed

LAYOUTS = [layout for layout, pipeline in single_files.PIPELINES.items() if pipeline in FAMILIES]
SLOW = [pytest.param(layout, marks=[pytest.mark.slow] * (layout != "sd1")) for layout in LAYOUTS]
TRAINED = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the program, so that products of matrices have the same bits; and no progress bars."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


class Trained:
    """A base model as a folder and as one file, and checkpoints that were trained on it."""

    def __init__(self, layout, task, root):
        self.layout, self.root = layout, root
        self.folder = single_files.write_folder(root / "base", layout)
        self.file = single_files.write(root / "base.safetensors", layout)
        self.task = changed(
            task,
            {
                "train_args.batch_size": 1,
                "train_args.num_train_steps": 2,
                "train_args.max_train_steps": 2,
                "train_args.train_text_encoder": True,
                "validation": {"prompt": "x", "num_images": 1, "num_inference_steps": 1},
                "lora": {"rank": 2, "init_lora_weights": False, "target_modules": ["to_q", "conv1", "conv_shortcut"]},
            },
        )

    def checkpoint(self, method, base, **changes):
        out = self.root / f"{method}-{base.name}"
        if not out.exists():
            own = changed(self.task, {"model.name": str(base), "training_type": method, **changes})
            if method == "full":
                del own["lora"]
            succeed(own, out)
        return out

    def export(self, out, target, base, *flags):
        self.root.joinpath("exported").mkdir(exist_ok=True)
        path = self.root / "exported" / f"{out.name}-{target}{'.safetensors' * (target == 'single_file')}"
        succeed(None, None, "export", out, "--format", target, "--output", path, "--base", base, "--overwrite", *flags)
        return path


@pytest.fixture(scope="module", params=SLOW)
def trained(request, short_task, tmp_path_factory):
    return Trained(request.param, short_task, tmp_path_factory.mktemp(request.param))


def weights_of(pipe):
    """All weights of a pipeline, by component and name, in memory of their own."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": tensor.clone() for name, part in parts.items() for key, tensor in part.state_dict().items()
    }


def load(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    for part in pipe.components.values():
        for tensor in part.parameters() if isinstance(part, torch.nn.Module) else ():
            tensor.data = tensor.data.clone()  # a memory map's alignment can change bits
    return pipe


def fused(trained, checkpoint):
    pipe = load(trained.folder)
    pipe.load_lora_weights(checkpoint, weight_name="pytorch_lora_weights.safetensors")
    pipe.fuse_lora(components=[name for name in TRAINED if name in pipe.components])
    pipe.unload_lora_weights()
    return weights_of(pipe)


def read_single_file(path, classes):
    """What this program's own reader loads from the file."""
    lines = []
    file = single_file.inspect(path, "m", lines.append)
    found = {}
    for component in file.layout.parts:
        module = single_file_weights.load(classes[component], file, component, torch.float32, torch.device("cpu"))
        found |= {f"{component}.{name}": tensor for name, tensor in module.state_dict().items()}
    return found, file.configs["scheduler"]


def differing(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name].float(), expected[name].float())]


@pytest.mark.slow
def test_a_lokr_merged_into_its_base(trained):
    """The bits of Diffusers' fusing, convolutions included; alone in each layout."""
    out = trained.checkpoint("lokr", trained.folder, **{"train_args.train_text_encoder": False})
    pipe = load(trained.folder)
    original = weights_of(pipe)
    pipe.unet.load_lora_adapter(out / "checkpoint", weight_name="pytorch_lora_weights.safetensors", prefix="unet")
    pipe.unet.fuse_lora()
    expected = {name.replace(".base_layer.", "."): tensor for name, tensor in weights_of(pipe).items()}
    expected = {name: tensor for name, tensor in expected.items() if ".lokr_" not in name}
    found = weights_of(load(trained.export(out, "diffusers", trained.folder)))
    assert differing(found, expected) == [] and len(differing(found, original)) > 10
    for layout in ("diffusers", "webui", "peft"):
        target = trained.root / f"lokr-{layout}{'.safetensors' * (layout != 'peft')}"
        succeed(None, None, "export", out, "--format", "lora", "--layout", layout, "--output", target)
        assert target.is_dir() == (layout == "peft")


def test_a_lora_merged_into_its_base(trained):
    """From a folder and from a file, into a folder and into a file: the bits of Diffusers' `fuse_lora`."""
    bases = [trained.folder, trained.file] if trained.layout == "sd1" else [trained.folder]
    expected = None
    for base in bases:
        out = trained.checkpoint("lora", base)
        expected = expected or fused(trained, out / "checkpoint")
        folder = trained.export(out, "diffusers", base)
        pipe = load(folder)
        assert differing(weights_of(pipe), expected) == []
        found, scheduler = read_single_file(trained.export(out, "single_file", base), single_files.CLASSES)
        assert differing(found, expected) == []
        assert scheduler["prediction_type"] == pipe.scheduler.config.prediction_type
    original = weights_of(load(trained.folder))
    assert len(differing(expected, original)) > 10
    vae = Path("vae", "diffusion_pytorch_model.safetensors")
    linked = trained.root / "exported" / "lora-base-diffusers" / vae
    assert linked.stat().st_ino == (trained.folder / vae).stat().st_ino


@pytest.mark.slow
def test_a_whole_model(trained):
    """The published components, and the base model's others."""
    out = trained.checkpoint("full", trained.folder)
    folder = trained.export(out, "diffusers", trained.folder)
    found = weights_of(load(folder))
    names = [name for name in TRAINED if (trained.folder / name).is_dir()]
    for name in names:
        pipe_part = {
            key.removeprefix(f"{name}."): tensor for key, tensor in found.items() if key.startswith(f"{name}.")
        }
        stored = next((out / "checkpoint" / name).glob("*.safetensors"))
        published = {key.removeprefix("text_model."): tensor for key, tensor in load_file(stored).items()}
        assert {key.removeprefix("text_model."): value for key, value in pipe_part.items()}.keys() == published.keys()
        assert all(
            torch.equal(pipe_part.get(key, pipe_part.get(f"text_model.{key}")), published[key]) for key in published
        )
    read, _ = read_single_file(trained.export(out, "single_file", trained.folder), single_files.CLASSES)
    assert differing(read, found) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype, wanted", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_another_precision(trained, dtype, wanted):
    """Every weight of every part is rounded once, those of frozen parts as well."""
    out = trained.checkpoint("lora", trained.folder)
    expected = fused(trained, out / "checkpoint")
    pipe = DiffusionPipeline.from_pretrained(
        trained.export(out, "diffusers", trained.folder, "--dtype", dtype), dtype=wanted
    )
    assert all(torch.equal(tensor, expected[name].to(wanted)) for name, tensor in weights_of(pipe).items())
    file = load_file(trained.export(out, "single_file", trained.folder, "--dtype", dtype))
    assert {tensor.dtype for tensor in file.values()} == {wanted}


@pytest.mark.slow
def test_diffusers_reads_the_single_file(trained):
    out = trained.checkpoint("lora", trained.folder)
    expected = weights_of(load(trained.export(out, "diffusers", trained.folder)))
    path = trained.export(out, "single_file", trained.folder)
    cls = type(load(trained.folder))
    options = {"safety_checker": None} if trained.layout != "xl" else {}
    pipe = cls.from_single_file(str(path), config=str(trained.folder), local_files_only=True, **options)
    # It tells the text encoders of XL apart by their widths, which are equal in the small model.
    names = [name for name in expected if not name.startswith("text_encoder_2.")]
    found = weights_of(pipe)
    assert differing({name: found[name] for name in names}, {name: expected[name] for name in names}) == []


def test_what_is_refused(trained, tmp_path):
    """Nothing is written, and what is there stays as it is."""
    if trained.layout != "sd1":
        pytest.skip("once is enough")
    out = trained.checkpoint("lora", trained.folder)

    def refuse(code, *flags, checkpoint=out):
        done = run_job(None, None, "export", checkpoint, *flags)
        assert done.code == code, done.stderr
        return done.error

    file, there = tmp_path / "m.safetensors", tmp_path / "there.safetensors"
    there.write_bytes(b"mine")
    before = snapshot(tmp_path)
    whole = ("--format", "single_file", "--output")
    assert "was the task's model.name" in refuse(4, *whole, file)
    error = refuse(4, *whole, file, "--base", trained.file)
    digest = json.loads((out / "checkpoint" / "manifest.json").read_bytes())["base_model"]["identity"]
    assert digest in error and "folder with these very files" in error
    assert "--overwrite" in refuse(7, *whole, there, "--base", trained.folder)
    assert "needs --format lora" in refuse(2, *whole, file, "--layout", "peft")
    assert "ends in .safetensors" in refuse(2, *whole, tmp_path / "model", "--base", trained.folder)
    assert snapshot(tmp_path) == before
    damaged = shutil.copytree(out / "checkpoint", tmp_path / "damaged")
    with (damaged / "pytorch_lora_weights.safetensors").open("r+b") as data:
        data.seek(-1, 2)
        data.write(b"\xff")
    assert "is corrupt" in refuse(5, *whole, file, "--base", trained.folder, checkpoint=damaged)


def test_a_lora_alone_needs_no_base_model(trained, tmp_path):
    if trained.layout != "sd1":
        pytest.skip("once is enough")
    out = trained.checkpoint("lora", trained.folder)
    path = tmp_path / "lora.safetensors"
    succeed(None, None, "export", out, "--format", "lora", "--output", path, "--strength", "0.5", "--dtype", "fp16")
    own, stored = load_file(path), load_file(out / "checkpoint" / "pytorch_lora_weights.safetensors")
    for name, tensor in stored.items():
        assert torch.equal(own[name], (tensor * 0.5 if "lora_B" in name else tensor).half())
    pipe = load(trained.folder)
    pipe.load_lora_weights(path)
    assert pipe.get_list_adapters()["unet"] == ["default_0"]

"""The example tasks are planned without a note that a person would have to act on."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support import real_shapes
from tests.support.clips import make_clip
from tests.support.examples import EXAMPLES, NAMES, PUBLISHED_AS, SIZED
from tests.support.forks import fork_server
from tests.support.harness import changed
from tests.support.published_models import PIPELINES
from tests.support.tiny import build_dataset, build_sd, build_sdxl
from tests.support.tiny_cogvideox import build_cogvideox
from tests.support.tiny_flux import build_flux
from tests.support.tiny_flux2_klein import build_flux2_klein
from tests.support.tiny_hunyuan_video import build_hunyuan_video
from tests.support.tiny_ltx import build_ltx
from tests.support.tiny_qwen_image import build_qwen_image
from tests.support.tiny_sd3 import build_sd3
from tests.support.tiny_wan import build_wan
from tests.support.tiny_z_image import build_z_image

BUILDERS = {
    "StableDiffusionPipeline": build_sd,
    "StableDiffusionXLPipeline": build_sdxl,
    "StableDiffusion3Pipeline": build_sd3,
    "FluxPipeline": build_flux,
    "Flux2KleinPipeline": build_flux2_klein,
    "ZImagePipeline": build_z_image,
    "QwenImagePipeline": build_qwen_image,
    "LTXPipeline": build_ltx,
    "WanPipeline": build_wan,
    "CogVideoXPipeline": build_cogvideox,
    "HunyuanVideoPipeline": build_hunyuan_video,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    built = {pipeline: build(folder / pipeline) for pipeline, build in BUILDERS.items()}
    config = built["StableDiffusion3Pipeline"] / "transformer" / "config.json"
    published = {
        "pos_embed_max_size": real_shapes.SD3_MEDIUM["pos_embed_max_size"]
    }  # the tiny one's table is too short
    config.write_text(json.dumps(json.loads(config.read_text()) | published))
    return built


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("forks"), heavy=False) as started:
        yield started


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return build_dataset(tmp_path_factory.mktemp("images") / "images", 40)


@pytest.fixture(scope="module")
def samples(images, tmp_path_factory):
    """Return the folder of samples for a task: for video models clips of the length and frame rate that it wants."""

    def folder(task):
        if "frame_rate" not in task["dataset"]:
            return images
        clips = tmp_path_factory.mktemp("clips")
        wanted = {"frames": task["train_args"]["num_frames"], "rate": task["dataset"]["frame_rate"]}
        first = make_clip(clips / "0.mp4", size=(48, 32), **wanted)
        for index in range(1, 8):
            shutil.copy(first, clips / f"{index}.mp4")
        for clip in list(clips.iterdir()):
            clip.with_suffix(".txt").write_text("a sks rabbit")
        return clips

    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_has_no_note_to_act_on(name, models, samples, server, tmp_path):
    task = json.loads((EXAMPLES / f"{name}.json").read_text())
    model = models[PIPELINES[PUBLISHED_AS[task["model"]["name"]]]]
    own = changed(task, {"model.name": str(model), "model.variant": None, "dataset.name": str(samples(task))})
    planned = server.run(own, tmp_path / "out", "--plan", env={"DEVICE": "cuda"})
    assert planned.code == 0, planned.stderr
    assert "validation on the GPU" in planned.stdout
    notes = [line for line in planned.stdout.splitlines() if line.startswith("note:") and "no GPU" not in line]
    assert notes == [] or name not in SIZED

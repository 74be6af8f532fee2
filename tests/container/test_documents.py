"""What README.md and the users' documents tell people to type, typed: every `sh` fence, word for word.

The commands run in a folder that looks like a checkout, with two programs in front: a `docker` that adds what this
machine lacks (a GPU, the Hub, the image's name), and a `make` that only knows whether there is such a target. Nothing
else is changed but the training's length. A line that is in no list fails a test, so that a new one is tried, or left
out for a reason.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.containers import CALLER, IMAGE, PATIENCE, ROOT, engine_knows_gpus, give, owners
from tests.support.fake_hub import serving_hub

pytestmark = pytest.mark.container

DOCUMENTS = (
    "README.md",
    "docs/chains.md",
    "docs/container.md",
    "docs/cookbook.md",
    "docs/export.md",
    "docs/image.md",
    "docs/trust.md",
    "docs/verify.md",
    "docs/watch.md",
    "docs/worker.md",
    "deploy/README.md",
)
MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
VENV_PYTHON = ".venv/bin/python"
NOT_RUN = {
    "make demo": "CI's own step",
    "make demo-video": "tests/integration/test_demo_video.py",
    "make test": "CI's own step",
    ".venv/bin/python entrypoint.py caption": "needs a captioner from the Hub",
    "docker compose run --rm train": "tests/container/test_compose.py",
    "docker compose run --rm chain": "tests/container/test_compose.py",
    "mkdir -p tasks": "for the next line",
    ".venv/bin/python entrypoint.py worker": "tests/integration/test_worker.py",
    "docker run --rm --gpus all -v ./tasks:/tasks": "tests/integration/test_worker.py, without a container",
    "cp task.json tasks/cat.json.part": "a copy",
    "for gpu in 0 1": "needs two GPUs",
    "docker buildx build": "the base image is on a registry, and it takes minutes: tried by hand",
    "docker buildx imagetools": "the image would have to be on a registry",
    "cosign": "the image would have to be on a registry",
    "HF_TOKEN=": "tests/integration/test_push.py pushes",
    "touch out/FINISH_NOW": "tests/integration/test_finish_now.py",
    ".venv/bin/python -m pip install --no-deps -r requirements-trackers.txt": "installs packages, as `make setup` does",
    ".venv/bin/python entrypoint.py --task task.json --output-dir out --trackers": "tests/integration/test_trackers.py",
    "deploy/many.sh": "there is no cluster: tests/deploy runs it without kubectl",
    "hf jobs run": "needs an account",
    "sky launch": "needs an account with a cloud: tests/deploy reads its file",
    "cp deploy/replicate/cog.yaml": "for the next line",
    "cog push": "needs an account: tests/deploy calls what it serves",
    "docker build -t registry.example.com/sd-lora-runpod": "its base image is on a registry: tests/deploy",
}
"""How a line begins that is only read, and why."""

DOCKER = """#!/bin/sh
# The real docker. `run` gets what this machine lacks; a container that asked for no network gets none.
first=$1; shift
network="--network=host"
for word in "$@"; do [ "$word" = --network=none ] && network=; done
case "$first" in
  run) set -- $network -e DEVICE=cpu -e HF_ENDPOINT=$HUB "$@" ;;
esac
count=$#
while [ "$count" -gt 0 ]; do
  word=$1; shift; count=$((count - 1))
  case "$word" in
    sd-lora-task) word=$IMAGE ;;
    --gpus) [ "$GPUS" ] || { shift; count=$((count - 1)); continue; } ;;
  esac
  set -- "$@" "$word"
done
exec "$REAL_DOCKER" "$first" "$@"
"""
MAKE = '#!/bin/sh\n[ "$*" = image ] && grep -q "^image:" "$ROOT/Makefile"\n'


def fences(name):
    """The `sh` fences of a document."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)


def fence(*words):
    """The one fence that has all these words."""
    (found,) = [text for name in DOCUMENTS for text in fences(name) if all(word in text for word in words)]
    return found


def runnable(text):
    """A fence without the lines that are only read."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(tuple(NOT_RUN)))


def shorten(path):
    """The document's own task, on a CPU in seconds: a small base model has its place on the Hub here."""
    task = json.loads(path.read_text())
    task["train_args"] |= {"max_train_steps": 4, "num_train_steps": 2, "resolution": 64, "batch_size": 2}
    task["validation"] |= {"num_images": 1}
    path.write_text(json.dumps(task))


@pytest.fixture
def shell(tmp_path):
    """Run a script as a person would in a checkout of their own."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    for name in (
        "assets",
        "engine",
        "schema",
        "entrypoint.py",
        "docker-compose.yml",
        "Makefile",
        "Dockerfile",
    ):
        (checkout / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "examples", checkout / "examples")  # compose gives ./out to whoever owns the demo
    (checkout / VENV_PYTHON).parent.mkdir(parents=True)
    (checkout / VENV_PYTHON).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for path, text in ((programs / "docker", DOCKER), (programs / "make", MAKE)):
        path.write_text(text)
    for path in (programs / "docker", programs / "make", checkout / VENV_PYTHON):
        path.chmod(0o755)
    give(checkout, CALLER)
    shutil.copytree(ROOT / "assets/base-emoji", tmp_path / "model")
    for path in (tmp_path / "model").rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))  # what the README's task asks for
    with serving_hub({MODEL: tmp_path / "model"}) as (hub, _):
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "REAL_DOCKER": shutil.which("docker"),
            "GPUS": "yes" if engine_knows_gpus() else "",
            "ROOT": str(ROOT),
            "IMAGE": IMAGE,
            "CPU_IMAGE": IMAGE,
            "HUB": hub,
            "HF_ENDPOINT": hub,
            "HF_HOME": str(tmp_path / "huggingface"),
            "CACHE_DIR": str(tmp_path / "cache"),
            "COMPOSE_PROJECT_NAME": tmp_path.name.replace("_", "-"),
            "DEVICE": "cpu",
        }

        def run(script):
            line = ["bash", "-euo", "pipefail", "-c", script]
            done = subprocess.run(
                line, cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=5 * PATIENCE
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
            return done.stdout + done.stderr

        run.folder = checkout
        yield run


def prepared(shell):
    """A person's folder after the README's first lines: their task, and five of their images."""
    first, _ = re.split(r"^(?=docker run)", fence("cat > task/task.json"), maxsplit=1, flags=re.MULTILINE)
    shell(first)
    shorten(shell.folder / "task/task.json")
    images = shell.folder / "task/my-images"
    images.mkdir()
    for path in sorted((ROOT / "assets/datasets/emoji-high-contrast").glob("*.png"))[:5]:
        shutil.copy(path, images)
        (images / f"{path.stem}.txt").write_text(f"a drawing of {path.stem}")
    for name in ("task", "out", "cache"):
        give(shell.folder / name, CALLER)
    return images


def is_whole(folder):
    """Whether a checkpoint's files are those that its manifest lists."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return all(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in manifest["files"].items()
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def empty(folder):
    """Replace a folder by an empty one of the same person."""
    shutil.rmtree(folder)
    folder.mkdir()
    give(folder, CALLER)


def is_done(folder):
    result = json.loads((folder / "result.json").read_text())
    return result["status"] == "done" and (folder / "checkpoint/manifest.json").exists()


def test_every_fence_is_known():
    """Each line that starts a program is run by a test here, or named in NOT_RUN."""
    tried = [
        fence("docker compose run --rm demo"),
        fence("cat > task/task.json"),
        fence("--task - < task/task.json"),
        fence("entrypoint.py --task task/task.json --output-dir out\n", "make demo"),
        fence("until [ -e out/checkpoint/FINISH ]"),
        fence("entrypoint.py chain --task examples/demo/task.json"),
        fence("entrypoint.py verify out", "entrypoint.py compare"),
        fence("entrypoint.py export out"),
        fence("sd-lora-task prefetch", "--network=none"),
        fence("sd-lora-task prefetch", "--prune"),
        fence("--read-only --cap-drop ALL"),
    ]
    left = [text for name in DOCUMENTS for text in fences(name) if text not in tried]
    whole = [line for text in left for line in text.replace("\\\n", "").splitlines()]
    lines = [line for line in whole if not line.startswith("export ")]
    assert [line for line in lines if not line.startswith(tuple(NOT_RUN))] == []


@pytest.mark.timeout(6 * PATIENCE)  # 150 steps at batch 16
def test_the_quick_start_without_a_gpu(shell):
    shell(fence("docker compose run --rm demo"))
    last = shell.folder / "out/demo/001"
    assert (last / "checkpoint/FINISH").exists() and is_whole(last / "checkpoint")
    assert {path.name for path in (last / "validation").glob("*.png")} == {f"{index}.png" for index in range(6)}
    assert owners(shell.folder / "out") == {CALLER}


def test_a_task_of_ones_own(shell):
    prepared(shell)
    text = fence("cat > task/task.json")
    plan, train = [line for line in text.splitlines() if line.startswith("docker run")]
    assert "steps 0 to 2 of 4" in shell(plan)
    assert not (shell.folder / "out/result.json").exists()
    shell(train)
    assert is_done(shell.folder / "out") and owners(shell.folder / "out") == {CALLER}
    whole = contents(shell.folder / "out/checkpoint")
    for line in fence("--task - < task/task.json").splitlines():
        empty(shell.folder / "out")
        shell(line)
        assert contents(shell.folder / "out/checkpoint") == whole


def test_ahead_of_time(shell):
    prepared(shell)
    fill, train = fence("sd-lora-task prefetch", "--network=none").splitlines()
    assert "5 images" in shell(fill)
    shell(train)
    assert is_done(shell.folder / "out")
    whole = contents(shell.folder / "out/checkpoint")
    # The folders belong to that person.
    identity = f"id() {{ echo {CALLER[0]}; }}\n"
    empty(shell.folder / "out")
    shell(identity + fence("--read-only --cap-drop ALL"))
    assert contents(shell.folder / "out/checkpoint") == whole
    prune = identity + fence("sd-lora-task prefetch", "--prune")
    assert "removed nothing" in shell(prune)
    assert "1 Hub model" in shell(prune.replace("200000000000", "0"))


def test_without_docker(shell):
    prepared(shell)
    shell(runnable(fence("make demo", "entrypoint.py")))
    assert is_done(shell.folder / "out")
    shell("cp -r out out-of-one-gpu && cp -r out out-of-another")
    said = shell(fence("entrypoint.py verify out", "entrypoint.py compare").replace("--steps 20", "--steps 1"))
    assert said.count("identical") >= 2
    shell(fence("until [ -e out/checkpoint/FINISH ]"))
    assert (shell.folder / "out/checkpoint/FINISH").exists()
    # A single file cannot say the settings of the small base model: tests/integration/test_export.py makes one.
    shell("".join(line for line in fence("entrypoint.py export out").splitlines(keepends=True) if "single" not in line))
    assert (shell.folder / "my-model/model_index.json").exists() and (shell.folder / "my-lora.safetensors").exists()


def test_the_chain_of_the_example(shell):
    task = json.loads((ROOT / "examples/demo/task.json").read_text())
    task["train_args"] |= {"num_train_steps": 1, "max_train_steps": 2, "batch_size": 2}
    task["train_args"].pop("lr_scheduler")
    task["validation"] = {"num_images": 1}
    (shell.folder / "examples/demo/task.json").write_text(json.dumps(task))
    shell(fence("entrypoint.py chain --task examples/demo/task.json"))
    assert (shell.folder / "out/demo/001/checkpoint/FINISH").exists()


def test_what_is_not_run_is_still_there():
    text = "".join(Path(ROOT, name).read_text() for name in DOCUMENTS)
    assert all(f"\n{line}" in text for line in NOT_RUN)

"""Recipes for services other than Kubernetes, as far as they can be tried without the service."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from engine.task.task import parse_task

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE = yaml.safe_load((DEPLOY / "trainjob.yaml").read_text())["spec"]["trainer"]["image"]
# The keys there are: github.com/replicate/cog, pkg/config/data/config_schema_v1.0.json; SkyPilot 0.14's schemas.py.
COG = {"build", "image", "model", "run", "predict", "train", "concurrency", "environment", "weights"}
COG_BUILD = {
    "cuda", "cudnn", "gpu", "pre_install", "python_packages", "python_requirements", "python_version", "run",
    "sdk_version", "system_packages",
}  # fmt: skip
SKY = {"name", "workdir", "num_nodes", "resources", "file_mounts", "setup", "run", "envs", "secrets", "volumes"}
# A job that does what a test needs of it: it fails with the seed as its code.
JOB = """
import json, os, sys
from pathlib import Path
at = lambda flag: sys.argv[sys.argv.index(flag) + 1]
task = json.loads(sys.stdin.read() if at("--task") == "-" else Path(at("--task")).read_text())
out = Path(at("--output-dir"))
(out / "checkpoint").mkdir(parents=True)
(out / "checkpoint" / "lora").write_text(json.dumps([task, os.environ.get("HF_TOKEN")]))
code = task.get("seed", 0)
(out / "result.json").write_text(json.dumps({"code": code, "message": "the reason"}))
sys.exit(code)
"""


def load(path, monkeypatch, **modules):
    """Import a recipe with stand-ins for the service's package."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestHuggingFaceJobs:
    def command(self):
        blocks = re.findall(r"```sh\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
        (found,) = [block for block in blocks if block.startswith("hf jobs run")]
        return found

    def test_its_own_parser_takes_the_command(self):
        line = self.command().replace("hf jobs run", "hf jobs run --dry-run", 1)
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(["bash", "-euc", line], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert IMAGE in done.stdout and "python /app/entrypoint.py" in done.stdout

    def test_the_task_arrives_as_it_is(self):
        names = re.findall(r'TASK_JSON="\$\(cat (\S+)\)"', self.command())
        assert [parse_task((ROOT / name).read_bytes(), source=name) for name in names]


class TestSkyPilot:
    task = yaml.safe_load((DEPLOY / "sky.yaml").read_text())

    def test_its_keys(self):
        assert {*self.task} <= SKY and self.task["envs"]["IMAGE"] == IMAGE

    def test_what_it_runs(self, tmp_path):
        """With a `docker` that prints its arguments."""
        (tmp_path / "docker").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / "docker").chmod(0o755)
        env = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            **{"IMAGE": IMAGE, "PUSH_TO_HUB": "a/b"},
        }
        done = subprocess.run(["bash", "-euc", self.task["run"]], env=env, capture_output=True, text=True, check=True)
        told = done.stdout.splitlines()
        volumes = [told[k + 1].split(":")[0] for k, word in enumerate(told) if word == "-v"]
        assert told[-1] == IMAGE and volumes == [str(tmp_path / name) for name in ("task", "out", "cache")]
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777


class TestReplicate:
    @pytest.fixture
    def train(self, monkeypatch, tmp_path):
        (tmp_path / "train.py").write_text((DEPLOY / "replicate/train.py").read_text())
        (tmp_path / "entrypoint.py").write_text(JOB)
        cog = SimpleNamespace(
            BaseModel=type("BaseModel", (), {"__init__": lambda self, **values: self.__dict__.update(values)}),
            Input=lambda **options: options.get("default"),
            Path=Path,
            Secret=str,
        )
        return load(tmp_path / "train.py", monkeypatch, cog=cog).train

    def test_its_keys(self):
        config = yaml.safe_load((DEPLOY / "replicate/cog.yaml").read_text())
        assert {*config} <= COG and {*config["build"]} <= COG_BUILD
        assert (ROOT / config["build"]["python_requirements"]).exists()
        file, _, function = config["train"].partition(":")
        assert f"def {function}(" in (DEPLOY / "replicate" / file).read_text()

    def test_the_weights_are_the_checkpoint(self, train, tmp_path):
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            archive.writestr("a.txt", "a cat")
        token = SimpleNamespace(get_secret_value=lambda: "hf_secret")
        output = train(task='{"model": {"name": "m"}}', images=tmp_path / "images.zip", hf_token=token)
        with tarfile.open(output.weights) as archive:
            task, used = json.load(archive.extractfile("checkpoint/lora"))
        assert used == "hf_secret" and task["model"] == {"name": "m"}
        assert (Path(task["dataset"]["name"]) / "a.txt").read_text() == "a cat"

    def test_a_failure_is_said(self, train):
        with pytest.raises(RuntimeError, match="code 4: the reason"):
            train(task='{"seed": 4}', images=None, hf_token=None)


class TestRunPod:
    @pytest.fixture
    def handler(self, monkeypatch, tmp_path):
        module = load(DEPLOY / "runpod/handler.py", monkeypatch, runpod=SimpleNamespace())
        (tmp_path / "job.py").write_text(JOB)
        monkeypatch.setattr(module, "JOB", (sys.executable, str(tmp_path / "job.py")))
        monkeypatch.setattr(module, "VOLUME", tmp_path / "volume")
        return module.handler

    def test_a_request_is_a_job(self, handler, tmp_path):
        found = handler({"id": "1", "input": {"name": "cat", "task": {"seed": 0}}})
        assert found == {"result": {"code": 0, "message": "the reason"}}
        assert (tmp_path / "volume/loras/cat/checkpoint/lora").exists()

    def test_a_failed_job_fails_the_request(self, handler):
        assert handler({"input": {"name": "cat", "task": {"seed": 6}}}) == {
            "error": "the job ended with code 6: the reason"
        }

    @pytest.mark.parametrize(
        "given", [{"name": "../x", "task": {}}, {"name": "cat"}, {"name": "cat", "task": "{}"}, {}]
    )
    def test_a_wrong_request_starts_nothing(self, handler, given, tmp_path):
        assert "input.name" in handler({"input": given})["error"] and not (tmp_path / "volume").exists()

    def test_the_image_is_made_of_the_job_s(self):
        text = (DEPLOY / "runpod/Dockerfile").read_text()
        assert f"FROM {IMAGE}\n" in text
        (line,) = re.findall(r"ENTRYPOINT (.*)", text)
        assert json.loads(line) == shlex.split("/opt/runpod/bin/python /opt/runpod/handler.py")

"""`make`, with stand-ins for Docker and Python: what it asks of them, and what it says."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = """#!/bin/sh
# The first command's arguments, one a line; the others are not looked at.
[ -f "$ASKED" ] || printf '%s\\n' "$@" >"$ASKED"
exit "$CODE"
"""
PYTHON = """#!/bin/sh
# Says what it is asked for; a virtual environment made by it has itself as its Python.
echo "python $*"
[ "$*" = "-m venv .venv" ] && mkdir -p .venv/bin && cp "$0" .venv/bin/python
exit 0
"""


@pytest.fixture
def checkout(tmp_path):
    """A clone with a public address that has somebody's password in it."""
    folder = tmp_path / "checkout"
    for name in ("Makefile", "Dockerfile", "tools/image.sh", "tools/image_report.py", "engine/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", folder]
    for line in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *line], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://me:secret@example.org/me/lora.git"], check=True)
    return folder


@pytest.fixture
def make(checkout, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(DOCKER)
    (programs / "docker").chmod(0o755)

    def run(target, code=0, **variables):
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "ASKED": str(tmp_path / "asked"), "CODE": str(code)}
        done = subprocess.run(
            ["make", target], cwd=checkout, env=env | variables, capture_output=True, text=True, check=False
        )
        asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
        return done, asked.splitlines()

    return run


@pytest.mark.parametrize("target, requirements", [("image", "cuda"), ("image-cpu", "cpu")])
def test_what_the_image_is_built_with(make, target, requirements):
    done, asked = make(target)
    assert done.returncode == 0, done.stderr
    arguments = dict(argument.split("=", 1) for argument in asked if "=" in argument and not argument.startswith("--"))
    assert arguments["REQUIREMENTS"] == f"requirements-{requirements}.txt"
    assert arguments["BASE_IMAGE"].endswith(f"@{arguments['BASE_DIGEST']}")
    assert arguments["SOURCE"] == "https://example.org/me/lora.git", "nobody's password"
    assert len(arguments["REVISION"]) == 40 and arguments["VERSION"]


def test_a_base_of_ones_own_has_no_digest(make):
    _, asked = make("image-cpu", BASE_IMAGE="local-base:bookworm")
    assert "BASE_IMAGE=local-base:bookworm" in asked and not any(line.startswith("BASE_DIGEST") for line in asked)


def test_without_a_registry_it_says_what_to_do(make):
    done, _ = make("image-cpu", code=1)
    assert done.returncode != 0
    assert "BASE_IMAGE=" in done.stderr and "docker-engine.sh base" in done.stderr


def test_cleaning_leaves_the_trainings(make, checkout):
    for name in ("out/checkpoint", ".venv", "build"):
        (checkout / name).mkdir(parents=True)
    done, _ = make("clean")
    assert done.returncode == 0, done.stderr
    assert (checkout / "out/checkpoint").is_dir()
    assert not (checkout / ".venv").exists() and not (checkout / "build").exists()


@pytest.fixture
def asked_of_python(make, checkout, tmp_path):
    """Make a target with the stand-in for Python: the lines of the output, what it is asked for among them."""
    (tmp_path / "bin/python3").write_text(PYTHON)
    (tmp_path / "bin/python3").chmod(0o755)
    for path in [*ROOT.glob("requirements*.txt"), ROOT / "examples/demo/draw.py"]:
        (checkout / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, checkout / path.relative_to(ROOT))

    def run(target):
        done, _ = make(target)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def calls(lines):
    return [line for line in lines if line.startswith("python ") and not line.startswith("python -c")]


def test_the_demo_installs_what_it_needs_and_says_how_long_it_takes(asked_of_python):
    told = asked_of_python("demo")
    venv, torch, others, chain = calls(told)
    assert venv == "python -m venv .venv"
    (pin,) = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch==")]
    assert torch.endswith(f" --no-deps {pin}+cpu")
    assert others.endswith(" -r requirements.txt") and "--quiet" not in torch + others
    assert chain.startswith("python entrypoint.py chain --task examples/demo/task.json --output out/demo ")
    # Before: how long it takes; after: what to look at and how to draw.
    assert any("GB" in line and "minutes" in line for line in told[: told.index(venv)])
    assert any("minutes" in line for line in told[told.index(others) : told.index(chain)])
    after = "\n".join(told[told.index(chain) + 1 :])
    assert "out/demo/001/report.html" in after and (ROOT / "examples/demo/draw.py").read_text().strip() in after
    assert calls(asked_of_python("demo")) == [chain], "installed once"


def test_where_pips_own_sources_have_no_cpu_build_it_is_taken_from_pytorchs(asked_of_python, tmp_path):
    stand_in = tmp_path / "bin/python3"
    stand_in.write_text(PYTHON.replace("exit 0", 'case "$*" in *+cpu) exit 1;; esac'))
    _, _, torch, *_ = calls(asked_of_python("demo"))
    assert "--extra-index-url https://download.pytorch.org/whl/cpu torch==" in torch and not torch.endswith("+cpu")


def test_the_tests_install_the_rest_into_the_same_place(asked_of_python):
    asked_of_python("demo")
    rest, trackers, tests = calls(asked_of_python("test"))
    assert rest.endswith(" -r requirements-dev.txt") and "-m pytest" in tests
    assert trackers.endswith(" --no-deps -r requirements-tagger.txt -r requirements-trackers.txt")
    assert calls(asked_of_python("test")) == [tests]


def test_the_demo_says_how_many_steps_its_tasks_have(asked_of_python):
    args = json.loads((ROOT / "examples/demo/task.json").read_text())["train_args"]
    assert args["max_train_steps"] == 2 * args["num_train_steps"]
    assert any(f"two tasks of {args['num_train_steps']} steps" in line for line in asked_of_python("demo"))

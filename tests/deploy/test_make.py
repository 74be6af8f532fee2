"""`make image`, `image-cpu` and `clean`, with a stand-in for Docker: what they ask of it, and what they say."""

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

"""The Python that README.md and assets/README.md show, run word for word on the embedded base."""

import re
import subprocess
import sys

import pytest
from PIL import Image

from tests.support.harness import ENTRYPOINT, PATIENCE, changed, succeed

ROOT = ENTRYPOINT.parent
DEMO = re.compile(r"`(base, lora, prompt = [^`]+)`")


def snippet(name):
    """The one Python fence of a document."""
    (text,) = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    return text


def run(folder, script):
    (folder / "assets").symlink_to(ROOT / "assets")
    line = [sys.executable, "-W", "error::FutureWarning", "-c", script]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr


@pytest.mark.slow
def test_the_base_draws(tmp_path):
    run(tmp_path, snippet("assets/README.md") + "\nassert image.size == (64, 64)")


def of_the_demo():
    """README's snippet with the line for the demo in place of the published model's."""
    (ours,) = DEMO.findall((ROOT / "README.md").read_text())
    script, count = re.subn(r"^base, lora, prompt = .*$", ours, snippet("README.md"), flags=re.MULTILINE)
    assert count == 1
    return script


def test_the_demo_ends_with_the_readmes_snippet():
    assert (ROOT / "examples/demo/draw.py").read_text().partition("\n")[2] == of_the_demo()


@pytest.mark.slow
def test_the_demos_lora_is_used_as_the_readme_says(task, tmp_path):
    """With another LoRA of the same base in place of the demo's."""
    base = {
        "model.name": str(ROOT / "assets/base-emoji"),
        "train_args.num_train_steps": 1,
        "train_args.max_train_steps": 1,
    }
    succeed(changed(task, base), tmp_path / "out/demo/001")
    run(tmp_path, of_the_demo() + "pipe.set_adapters(pipe.get_active_adapters(), 0.7)")
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (64, 64)

"""Which build runs, and where."""

import platform
import subprocess

import pytest

from engine import __version__
from engine.results import host, provenance

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def _no_image(monkeypatch):
    monkeypatch.delenv("SD_LORA_TASK_REVISION", raising=False)


def git(folder, *arguments):
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


class TestRevision:
    def test_the_image_says_it(self, monkeypatch):
        monkeypatch.setenv("SD_LORA_TASK_REVISION", "abc")
        assert host.revision() == "abc"

    @pytest.fixture
    def clone(self, tmp_path, monkeypatch):
        folder = tmp_path / "clone"
        folder.mkdir()
        git(folder, "init", "--initial-branch", "main")
        git(folder, "commit", "--allow-empty", "-m", "first")
        monkeypatch.setattr(host, "_ROOT", folder)
        return folder

    def test_a_clone_has_it(self, clone):
        assert host.revision() == git(clone, "rev-parse", "HEAD")

    def test_packed(self, clone):
        git(clone, "pack-refs", "--all")
        assert host.revision() == git(clone, "rev-parse", "HEAD")

    def test_detached(self, clone):
        git(clone, "checkout", "--detach")
        assert host.revision() == git(clone, "rev-parse", "HEAD")

    def test_a_worktree(self, clone, tmp_path, monkeypatch):
        git(clone, "worktree", "add", "-b", "other", str(tmp_path / "other"))
        git(tmp_path / "other", "commit", "--allow-empty", "-m", "second")
        monkeypatch.setattr(host, "_ROOT", tmp_path / "other")
        assert host.revision() == git(tmp_path / "other", "rev-parse", "HEAD") != git(clone, "rev-parse", "HEAD")

    @pytest.mark.parametrize("head", [None, "", "ref: refs/heads/none", "no commit", "ref: ../../etc/passwd"])
    def test_where_nothing_says_it_there_is_none(self, tmp_path, monkeypatch, head):
        monkeypatch.setattr(host, "_ROOT", tmp_path)
        if head is not None:
            (tmp_path / ".git").mkdir()
            (tmp_path / ".git" / "HEAD").write_text(head)
        assert host.revision() is None


class TestDevice:
    @pytest.fixture
    def cards(self, tmp_path, monkeypatch):
        monkeypatch.setattr(host, "_CARDS", tmp_path)
        monkeypatch.setattr(provenance, "driver_version", lambda: "580.65.06")

        def put(*models):
            for number, model in enumerate(models):
                (tmp_path / str(number)).mkdir()
                (tmp_path / str(number) / "information").write_text(f"Model: \t\t {model}\nIRQ: 5\n")

        return put

    def test_the_driver_names_it(self, cards):
        cards("NVIDIA H200", "NVIDIA H200")
        assert host.expected_device("cuda") == {"type": "cuda", "name": "NVIDIA H200", "driver": "580.65.06"}

    def test_of_several_kinds_none_is_named(self, cards):
        cards("NVIDIA H200", "NVIDIA T400")
        assert host.expected_device("cuda") == {"type": "cuda", "driver": "580.65.06"}

    def test_a_cpu(self):
        assert host.expected_device("cpu") == {"type": "cpu", "machine": platform.machine()}


class TestIntroduction:
    def test_it_names_all_that_is_known(self):
        device = {"type": "cuda", "name": "NVIDIA H200", "driver": "580.65.06"}
        line, facts = host.introduction(COMMIT, device, "5" * 64)
        assert (
            line
            == f"sd-lora-task {__version__} (012345678901) on NVIDIA H200, driver 580.65.06, task sha256:{'5' * 64}"
        )
        assert facts == {
            "version": __version__, "revision": COMMIT, "device": device, "driver": "580.65.06",
            "host": platform.node(), "task_digest": "5" * 64,
        }  # fmt: skip

    def test_and_no_more(self):
        line, facts = host.introduction(None, None, None)
        assert line == f"sd-lora-task {__version__}"
        assert facts["device"] is facts["driver"] is facts["task_digest"] is None

    @pytest.mark.parametrize(
        ("device", "words"),
        [
            ({"type": "cpu"}, "the CPU"),
            ({"type": "cpu", "machine": "x86_64", "instructions": "AVX2", "threads": 1}, "the CPU (x86_64, AVX2)"),
            ({"type": "cuda", "driver": None}, "a GPU"),
        ],
    )
    def test_other_devices(self, device, words):
        assert host.introduction(None, device, None)[0].endswith(f" on {words}")

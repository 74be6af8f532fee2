"""What is refused before anything is loaded."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.core.errors import OutputError
from engine.job.advice import precheck
from engine.job.memory import Machine
from engine.results.output.folder import JobRecord, OutputFolder


class TestMemory:
    @pytest.mark.parametrize(
        "device, available, processes, most",
        [("cpu", 5, 1, 10), ("cpu", 5, 2, 5), ("cuda", 7, 2, 7), ("cuda", None, 1, None)],
    )
    def test_processes_share_the_machine_and_each_has_a_gpu(self, device, available, processes, most, monkeypatch):
        given = []
        monkeypatch.setattr(precheck.memory, "most_bytes", lambda: 10)
        monkeypatch.setattr(precheck.memory, "require_enough", lambda *_, **how: given.append(how["most"]))
        job = SimpleNamespace(base=None, task=None, parent=None)
        precheck.check_memory(job, Machine(device=device, available=available, num_processes=processes))
        assert given == [most]


class TestOutput:
    @pytest.fixture(autouse=True)
    def full(self, monkeypatch):
        """The folders of which room was asked for."""
        asked = []
        monkeypatch.setattr(precheck.disk_space, "require", lambda job, root: asked.append(root))
        return asked

    def check(self, root, **options):
        step_range = SimpleNamespace(num_steps=1)
        job = SimpleNamespace(record=JobRecord("mine", None), in_place=False, step_range=step_range, parent=None)
        precheck.check_output(job, OutputFolder(root), overwrite=options.get("overwrite", False))

    def test_a_result_of_another_job_is_refused_and_left_alone(self, tmp_path):
        self.check(tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()
        self.check(tmp_path)
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "manifest.json").write_text('{"task_digest": "other", "parent": null}')
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(OutputError, match="another job's result"):
            self.check(tmp_path)
        self.check(tmp_path, overwrite=True)
        assert sorted(tmp_path.rglob("*")) == before

    def test_its_own_result_is_none_of_anothers(self, tmp_path):
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "manifest.json").write_text('{"task_digest": "mine", "parent": null}')
        self.check(tmp_path)

    def test_room_is_asked_for_where_something_is_to_be_written(self, tmp_path, full):
        self.check(tmp_path / "new")
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "manifest.json").write_text('{"task_digest": "mine", "parent": null}')
        self.check(tmp_path)
        assert full == [tmp_path / "new"]

    @pytest.mark.parametrize("below", ["", "a", "a/b"])
    def test_a_file_in_its_place(self, tmp_path, below):
        (tmp_path / "out").write_text("")
        with pytest.raises(OutputError, match=f"cannot write to .*: {tmp_path}/out is a file, not a folder; remove it"):
            self.check(tmp_path / "out" / below)

    @pytest.mark.parametrize("below", ["", "a", "a/b"])
    def test_a_link_to_nowhere(self, tmp_path, below):
        (tmp_path / "out").symlink_to("nowhere")
        with pytest.raises(OutputError, match="out is a link to nowhere, which is not there; remove it"):
            self.check(tmp_path / "out" / below)

    @pytest.mark.parametrize("below", ["", "a", "a/b"])
    def test_one_that_may_not_be_written_or_made(self, tmp_path, below, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
        with pytest.raises(OutputError, match=f": make {tmp_path} writable for the user that runs the job"):
            self.check(tmp_path / below)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("folder", ["/proc/no-such-folder", "/sys/no/such"])
    def test_the_kernels_folders_seem_open_to_root(self, folder):
        with pytest.raises(OutputError, match="cannot write to"):
            self.check(Path(folder))

"""`progress.jsonl`: phases, steps and signs of life."""

import errno
import json
import os
import re
import stat
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from engine.core.errors import OutputError
from engine.results import progress_log
from engine.results.history import StepReport
from engine.results.outcome import Clock
from engine.results.progress_log import ProgressLog
from engine.task.plan.steps import StepRange

STEP_RANGE = StepRange(num_rows=10, batch_size=2, micro_batches=3, start_step=4, stop_step=14, max_steps=20)
MEASURED = {"loss", "learning_rate", "grad_norm", "images_per_second", "eta_seconds"}
FIELDS = {"time", "event", "phase", "step"} | MEASURED


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(path):
    return [(line["event"], line["phase"]) for line in lines(path)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "progress.jsonl"


@pytest.fixture
def log(path):
    with ProgressLog(path, step=lambda: 4) as log:
        yield log


def begun(log):
    log.begin(may_write=True)
    log.claimed(is_fresh=False)
    log.phase("start")
    return log


class TestPhases:
    def test_each_has_a_line_as_it_begins(self, path):
        clock = Clock()
        with ProgressLog(path, step=lambda: 4) as log:
            clock.watchers.append(log.phase)
            log.begin(may_write=True)
            for name in ("start", "download", "load", "encode", "train", "train", "encode", "train", "validate"):
                with clock.phase(name):
                    assert lines(path)[-1]["phase"] == name, "flushed line by line"
        told = ["start", "download", "load", "encode", "train", "encode", "train", "validate"]
        assert events(path) == [("start", "start"), *(("phase", name) for name in told[1:]), ("end", "validate")]
        assert all(line.keys() == FIELDS for line in lines(path))
        assert all(line["step"] == 4 for line in lines(path))
        assert all(re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.\d{3}Z", line["time"]) for line in lines(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_a_sign_of_life_in_every_one_that_takes_long(self, log, path, monkeypatch):
        assert progress_log.ALIVE_SECONDS <= 30.0, "one a minute is promised"
        monkeypatch.setattr(progress_log, "ALIVE_SECONDS", 0.2)
        monkeypatch.setattr(progress_log, "LINE_SECONDS", 0.2)
        begun(log)
        for name in ("download", "validate"):
            log.phase(name)
            time.sleep(0.7)
            assert events(path).count(("alive", name)) >= 2

    def test_other_processes_of_the_job_write_nothing(self, path):
        with ProgressLog(path, step=lambda: 4) as log:
            log.phase("start")
            log.claimed(is_fresh=True)
        assert not path.exists()

    def test_a_process_that_starts_others_leaves_the_end_to_them(self, path):
        with ProgressLog(path, step=lambda: 4) as log:
            begun(log).hand_on()
        assert events(path) == [("start", "start")]


class TestTheFolder:
    """It may hold another job's result, until it is claimed."""

    @pytest.fixture(autouse=True)
    def _an_earlier_log(self, path):
        path.write_text('{"event": "end", "phase": "an earlier one"}\n')

    @pytest.mark.parametrize("may_write", [False, True])
    @pytest.mark.parametrize("is_fresh", [False, True])
    def test_no_line_is_lost_and_none_is_told_twice(self, path, may_write, is_fresh):
        with ProgressLog(path, step=lambda: 4) as log:
            log.begin(may_write=may_write)
            log.phase("start")
            log.phase("download")
            assert len(lines(path)) == (3 if may_write else 1)
            if is_fresh:
                path.unlink()  # as a claim does
            log.claimed(is_fresh=is_fresh)
            log.phase("load")
        own = [("start", "start"), ("phase", "download"), ("phase", "load"), ("end", "load")]
        assert events(path) == ([] if is_fresh else [("end", "an earlier one")]) + own

    def test_one_that_is_never_claimed_stays_as_it_was(self, path):
        before = path.read_bytes(), path.stat().st_mtime_ns
        with pytest.raises(KeyError), ProgressLog(path, step=lambda: 4) as log:
            log.begin(may_write=False)
            log.phase("start")
            raise KeyError
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before

    @pytest.mark.parametrize("put", [Path.symlink_to, Path.hardlink_to, lambda path, theirs: os.mkfifo(path)])
    def test_nothing_is_written_through_a_link_or_into_a_pipe(self, path, tmp_path, put):
        theirs = tmp_path / "theirs"
        theirs.write_text("")
        path.unlink()
        put(path, theirs)
        with ProgressLog(path, step=int) as log:
            begun(log)
        assert theirs.read_text() == ""
        assert events(path) == [("start", "start"), ("end", "start")]

    def test_one_that_cannot_be_written_is_an_output_error(self, tmp_path):
        with pytest.raises(OutputError, match="cannot write to"), ProgressLog(tmp_path / "no" / "p", step=int) as log:
            log.begin(may_write=True)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_the_log_belongs_to_the_folders_owner(self, path, tmp_path):
        path.unlink()
        os.chown(tmp_path, 12345, 23456)
        with ProgressLog(path, step=int) as log:
            begun(log)
        assert path.stat().st_uid == 12345

    def test_a_line_that_was_cut_spoils_no_other(self, path, monkeypatch):
        """By a disk that is full in the middle of it, and by the end of an earlier process."""
        path.write_text('{"event": "end", "pha')
        write = os.write

        def half(descriptor, data):
            if len(data) > 20:
                return write(descriptor, data[: len(data) - 20])
            raise OSError(errno.ENOSPC, "full")

        with ProgressLog(path, step=int) as log:
            begun(log)
            monkeypatch.setattr(progress_log.os, "write", half)
            log.phase("download")
            monkeypatch.setattr(progress_log.os, "write", write)
            log.phase("load")
        found = path.read_text().splitlines()
        assert found[0] == '{"event": "end", "pha' and found[2].startswith('{"time"') and not found[2].endswith("}")
        assert [json.loads(line)["phase"] for line in (found[1], *found[3:])] == ["start", "load", "load"]

    def test_a_full_disk_is_a_warning_and_a_gap(self, path, monkeypatch, capsys):
        write = os.write

        def full(descriptor, data):
            raise OSError(errno.ENOSPC, "full")

        with ProgressLog(path, step=int) as log:
            begun(log)
            monkeypatch.setattr(progress_log.os, "write", full)
            log.phase("download")
            log.phase("load")
            monkeypatch.setattr(progress_log.os, "write", write)
            log.phase("train")
        assert events(path)[1:] == [("start", "start"), ("phase", "train"), ("end", "train")]
        assert capsys.readouterr().err.count("note: progress.jsonl has gaps: cannot write to") == 1


class TestTraining:
    def test_steps(self, log, path):
        begun(log)
        with closing(log.follow(STEP_RANGE, 4)):
            log.phase("train")
            assert lines(path)[-1]["step"] == 4 and all(lines(path)[-1][key] is None for key in MEASURED)
            log.step(StepReport(5, 0.25, 1e-4, 2.0))
        log.phase("validate")
        last = lines(path)[-1]
        assert (last["phase"], last["loss"], last["learning_rate"], last["grad_norm"]) == ("validate", 0.25, 1e-4, 2.0)
        trained = [line for line in lines(path) if line["event"] == "step"]
        assert [line["step"] for line in trained] == [5]
        assert trained[0]["images_per_second"] > 0 and trained[0]["eta_seconds"] >= 0

    def test_a_line_at_least_every_two_seconds_in_a_step_that_takes_longer(self, log, path, monkeypatch):
        assert progress_log.LINE_SECONDS == 2.0
        monkeypatch.setattr(progress_log, "LINE_SECONDS", 0.4)
        sizes = []
        begun(log)
        with closing(log.follow(STEP_RANGE, 4)):
            for _ in range(8):
                time.sleep(0.2)
                sizes.append(len(lines(path)))
        assert sizes[-1] >= 5
        assert all(later > earlier for earlier, later in zip(sizes, sizes[3:], strict=False)), sizes

    def test_fast_steps_do_not_flood_it(self, log, path):
        begun(log)
        with closing(log.follow(STEP_RANGE, 4)):
            for step in range(5, 500):
                log.step(StepReport(step, 0.5, 1e-4, 1.0))
        log.event("images")
        assert len(lines(path)) < 20 and lines(path)[-1]["step"] == 499

    def test_a_skipped_steps_norm_is_null(self, log, path):
        begun(log)
        with closing(log.follow(STEP_RANGE, 4)):
            log.step(StepReport(5, 0.5, 1e-4, None))
        assert lines(path)[-1]["grad_norm"] is None and lines(path)[-1]["loss"] == 0.5

    def test_encoding_ahead_of_the_first_step_is_no_part_of_the_speed(self, log, path, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(progress_log.time, "monotonic", lambda: now[0])
        begun(log)
        with closing(log.follow(STEP_RANGE, 4)):
            log.phase("encode")
            now[0] = 500.0
            log.phase("train")
            now[0] = 502.0
            log.step(StepReport(5, 0.5, 1e-4, 1.0))
        step = next(line for line in lines(path) if line["event"] == "step")
        assert (step["images_per_second"], step["eta_seconds"]) == (3.0, 18.0)

    def test_other_events_have_fields_of_their_own(self, log, path):
        begun(log).event("evaluation", heldout_loss=0.5)
        assert lines(path)[-1].keys() == FIELDS | {"heldout_loss"}

    def test_ends_also_after_a_failure(self, path):
        with pytest.raises(KeyError), ProgressLog(path, step=int) as log:
            begun(log)
            raise KeyError
        assert events(path)[-1] == ("end", "start")


def test_the_documented_probe_tells_a_job_that_is_alive(tmp_path):
    """Word for word as the document gives it, and the manifests."""
    root = Path(__file__).parents[3]
    (probe,) = re.findall(r"`(\[sh, -c, '.*?'\])`", (root / "docs" / "container.md").read_text())
    manifests = [text for path in (root / "deploy").glob("*.yaml") if "livenessProbe" in (text := path.read_text())]
    assert manifests and all(text.count(f"command: {probe}") == text.count("Probe:") for text in manifests)
    command = yaml.safe_load(probe)
    file = tmp_path / "progress.jsonl"

    def alive():
        variables = {"PATH": os.environ["PATH"], "OUTPUT_DIR": str(tmp_path)}
        return subprocess.run(command, check=False, capture_output=True, env=variables).returncode == 0

    assert not alive()
    file.write_text("{}\n")
    assert alive()
    for age, expected in ((500, True), (700, False)):
        os.utime(file, (time.time() - age,) * 2)
        assert alive() is expected

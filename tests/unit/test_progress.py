"""What is seen of a running job."""

import errno
import json
import os
import stat
import time

import pytest

from engine import progress, storage
from engine.errors import OutputError
from engine.history import StepReport
from engine.plan import Schedule
from engine.progress import Meter, TrainingLog

SCHEDULE = Schedule(num_rows=10, batch_size=2, micro_batches=3, start_step=4, stop_step=14, max_steps=20)
FIELDS = {"event", "step", "loss", "learning_rate", "grad_norm", "images_per_second", "eta_seconds"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "progress.jsonl"


@pytest.fixture
def log(path, tmp_path):
    return TrainingLog(path, SCHEDULE, owner=tmp_path)


class TestTrainingLog:
    def test_starts_and_ends_with_a_line_and_every_line_is_whole(self, log, path):
        with log.running(4):
            assert [line["event"] for line in lines(path)] == ["start"], "flushed line by line"
            note = log.step(StepReport(5, 0.25, 1e-4, 2.0))
        first, last = lines(path)[0], lines(path)[-1]
        assert all(line.keys() == FIELDS for line in lines(path))
        assert first | {"event": None} == dict.fromkeys(FIELDS) | {"step": 4}
        assert (last["event"], last["step"], last["loss"], last["learning_rate"], last["grad_norm"]) == (
            "end", 5, 0.25, 1e-4, 2.0,
        )  # fmt: skip
        assert last["images_per_second"] > 0 and last["eta_seconds"] >= 0
        assert "loss 0.2500" in note and "lr 1.00e-04" in note
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_a_line_at_least_every_two_seconds_in_a_step_that_takes_longer(self, log, path, monkeypatch):
        assert progress.LINE_SECONDS == 2.0
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.4)
        sizes = []
        with log.running(4):
            for _ in range(8):
                time.sleep(0.2)
                sizes.append(len(lines(path)))
        assert sizes[-1] >= 5
        assert all(later > earlier for earlier, later in zip(sizes, sizes[3:], strict=False)), sizes

    def test_fast_steps_do_not_flood_it(self, log, path):
        with log.running(4):
            for step in range(5, 500):
                log.step(StepReport(step, 0.5, 1e-4, 1.0))
        assert len(lines(path)) < 20 and lines(path)[-1]["step"] == 499

    def test_a_skipped_steps_norm_is_null(self, log, path):
        with log.running(4):
            log.step(StepReport(5, 0.5, 1e-4, None))
        assert lines(path)[-1]["grad_norm"] is None

    def test_ends_also_after_a_failure(self, log, path):
        with pytest.raises(KeyError), log.running(4):
            raise KeyError
        assert lines(path)[-1]["event"] == "end"

    def test_goes_on_in_the_same_file(self, path, tmp_path):
        for _ in range(2):
            with TrainingLog(path, SCHEDULE, owner=tmp_path).running(4):
                pass
        assert [line["event"] for line in lines(path)] == ["start", "end"] * 2

    def test_a_folder_that_cannot_be_written_is_an_output_error(self, tmp_path):
        with pytest.raises(OutputError, match="cannot write to"):
            TrainingLog(tmp_path / "missing" / "progress.jsonl", SCHEDULE, owner=tmp_path)

    def test_a_full_disk_is_an_output_error(self, log, monkeypatch):
        class Full:
            name = log._file.name
            write = staticmethod(lambda text: None)

            @staticmethod
            def flush():
                raise OSError(errno.ENOSPC, "full")

        real, log._file = log._file, Full
        with pytest.raises(OutputError, match="the disk is full"), log.running(4):
            pass
        real.close()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_belongs_to_the_folders_owner(self, path, tmp_path):
        os.chown(tmp_path, 12345, 23456)
        with TrainingLog(path, SCHEDULE, owner=tmp_path).running(4):
            pass
        assert path.stat().st_uid == 12345
        assert storage.FILE_MODE == 0o644


class TestMeter:
    def test_says_the_last_and_now_and_then(self, capsys, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        meter = Meter("encoding", "images", 100)
        for done in range(1, 101):
            now[0] += 1
            meter.update(done, "a note")
        meter.close()
        said = capsys.readouterr().err.splitlines()
        assert said[0] == "encoding: 10/100 images, a note" and said[-1].startswith("encoding: 100/100 images")
        assert len(said) == 10

"""How the programs beside the training end."""

import json
import signal

import pytest

from engine.commands import compare, program
from engine.commands.verify import main as verify
from engine.core import console
from engine.core.errors import DatasetError, Interrupted


@pytest.fixture(autouse=True)
def _undone(monkeypatch):
    """Restore the signals and the log's format, which a program sets for its process."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in signals}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    console.choose_format({})


@pytest.fixture
def last_message(monkeypatch):
    told = []
    monkeypatch.setattr(program, "write_termination_message", told.append)
    return told


def ending(error):
    @program.program
    def main(argv, environment):
        raise error

    return main


def test_a_known_reason_is_one_line_and_its_code(capsys, last_message):
    assert ending(DatasetError("no\nimages"))([], {}) == 3
    assert capsys.readouterr().err == "error: no images\n"
    assert last_message == ["no images"]


def test_a_signal_ends_it_with_the_signals_code(capsys, last_message):
    assert ending(Interrupted(signal.SIGTERM, "stopped by SIGTERM"))([], {}) == 143

    @program.program
    def main(argv, environment):
        signal.raise_signal(signal.SIGINT)

    assert main([], {}) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_70_and_a_traceback(capsys, last_message):
    assert ending(ZeroDivisionError("by\nnothing"))([], {}) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("error: a bug in this program: ZeroDivisionError: by nothing")


def test_the_log_is_written_as_log_format_says(capsys, last_message):
    assert ending(DatasetError("no images"))([], {"LOG_FORMAT": "json"}) == 3
    told = json.loads(capsys.readouterr().err)
    assert (told["level"], told["code"], told["kind"], told["message"]) == ("error", 3, "dataset", "error: no images")
    assert ending(DatasetError("no images"))([], {"LOG_FORMAT": "xml"}) == 2


@pytest.mark.parametrize(
    "module, name, argv", [(verify, "verify", ["result", "--task", "task.json"]), (compare, "compare", ["one", "two"])]
)
def test_a_bug_in_a_comparison_does_not_say_different(monkeypatch, last_message, module, name, argv):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(module, name, broken)
    assert module.main(argv, {}) == 70

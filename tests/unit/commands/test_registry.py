"""Which program a command line starts."""

import sys
from types import SimpleNamespace

import pytest

import entrypoint
from engine.commands import registry


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], (registry.TRAIN, [])),
        (["--plan", "verify"], (registry.TRAIN, ["--plan", "verify"])),
        (["verify", "out", "--task", "x"], ("engine.commands.verify.main", ["out", "--task", "x"])),
        (["compare", "verify", "out"], ("engine.commands.compare", ["verify", "out"])),
        (["nonsense"], (registry.TRAIN, ["nonsense"])),
    ],
)
def test_the_first_word_chooses(argv, expected):
    assert registry.split(argv) == expected


@pytest.mark.parametrize("module", [registry.TRAIN, *(row.module for row in registry.PROGRAMS.values())])
def test_every_row_is_a_program(module):
    assert callable(registry.load(module))


def test_a_row_is_started_with_its_arguments_and_the_environment(monkeypatch):
    given = []
    monkeypatch.setitem(sys.modules, "toy_program", SimpleNamespace(main=lambda *args: given.append(args) or 5))
    monkeypatch.setitem(registry.PROGRAMS, "toy", registry.Program("toy_program", "tell what it was given"))
    assert entrypoint.main(["toy", "--flag", "x"], {"KEY": "value"}) == 5
    assert given == [(["--flag", "x"], {"KEY": "value"})]
    assert "  toy " in registry.overview() and "tell what it was given" in registry.overview()

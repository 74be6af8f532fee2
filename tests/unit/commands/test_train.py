"""The training's command line; what it trains is in tests/integration."""

import gc

import pytest

from engine.commands import registry, train
from engine.core.errors import TaskError


def test_help_lists_the_other_programs(capsys):
    with pytest.raises(SystemExit) as ended:
        train._read_flags(["--help"], {})
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: entrypoint.py [-h] [--task PATH]")
    assert all(f"  {name} " in told for name in registry.PROGRAMS)


def test_a_word_that_is_no_program_is_refused_without_touching_a_folder(tmp_path):
    with pytest.raises(TaskError, match="'verfy' is not a program: expected one of verify, compare"):
        train._read_flags(["verfy", "--output-dir", str(tmp_path / "out")], {})
    assert not (tmp_path / "out").exists()


def test_imports_are_made_without_the_garbage_collector_and_kept_from_it():
    try:
        with train.importing():
            assert not gc.isenabled()
            kept = [[]]
        assert gc.isenabled()
        assert not any(found is kept for found in gc.get_objects())
        with pytest.raises(ImportError), train.importing():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()

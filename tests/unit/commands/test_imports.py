"""Importing at less cost: the same modules, nothing changed afterwards, and any other release as it is."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engine.commands.imports import importing

ROOT = Path(__file__).parents[3]


def run_python(script, folder=None):
    """What a script prints, in a process of its own; modules in `folder` come before installed ones."""
    code = f"import sys\nsys.path[:0] = {[str(folder)] if folder else []}\n" + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def thawed():
    yield
    gc.unfreeze()


def test_the_garbage_collector_is_off_and_what_was_imported_kept_from_it(thawed):
    with importing():
        assert not gc.isenabled()
        kept = [[]]
    assert gc.isenabled()
    assert not any(found is kept for found in gc.get_objects())


def test_a_place_in_the_code_is_told_without_its_text(thawed):
    usual = inspect.getframeinfo
    with importing():
        quick = inspect.getframeinfo(sys._getframe())
        assert inspect.getframeinfo(sys._getframe(), 5).code_context is None
    assert (quick.filename, quick.lineno, quick.function) == (
        __file__,
        test_a_place_in_the_code_is_told_without_its_text.__code__.co_firstlineno + 3,
        "test_a_place_in_the_code_is_told_without_its_text",
    )
    assert inspect.getframeinfo is usual


def test_a_failing_import_leaves_nothing_behind(thawed):
    usual = inspect.getframeinfo
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled() and inspect.getframeinfo is usual


def test_the_table_of_models_is_the_librarys_own_and_made_once():
    """`scanned` counts the files that are read for it."""
    script = """
        import transformers
        from transformers.utils import import_utils

        scanned, scan, read = [], import_utils.create_import_structure_from_path, import_utils.fetch__all__
        import_utils.fetch__all__ = lambda text: scanned.append(text) or read(text)
        from engine.commands.imports import import_transformers
        import_transformers()
        print(len(scanned), import_utils.create_import_structure_from_path is scan)

        file, found = transformers.models.__file__, transformers.models
        scan.cache_clear()
        import_utils.define_import_structure.cache_clear()
        usual = import_utils._LazyModule("transformers.models", file, import_utils.define_import_structure(file))
        print(len(scanned) > 1000, "CLIPTextModel" in found._class_to_module)
        for name in ("_modules", "_class_to_module", "_object_missing_backend", "_import_structure"):
            print(getattr(found, name) == getattr(usual, name))
        print(sorted(found.__all__) == sorted(usual.__all__))
    """
    assert run_python(script) == ["0", "True", "True", "True", *["True"] * 5]


def fake_transformers(folder, *, scan, models):
    """A package of that name, with `scan` in the module where it is looked for, or without that module."""
    files = {"__init__.py": "", "models/__init__.py": models}
    if scan is not None:
        files |= {"__init__.py": "from .utils import import_utils", "utils/import_utils.py": scan}
    for name, text in files.items():
        path = folder / "transformers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


IMPORT = (
    "from engine.commands.imports import import_transformers; import_transformers(); "
    "import transformers.models as models\n"
)


@pytest.mark.parametrize("scan", ["def other(path): return {}", None])
def test_a_release_that_makes_its_table_otherwise_is_imported_as_it_is(tmp_path, scan):
    folder = fake_transformers(tmp_path, scan=scan, models="table = 'its own'")
    assert run_python(IMPORT + "print(models.table)", folder) == ["its", "own"]


def test_a_scan_of_another_kind_is_asked_for_the_same_folder(tmp_path):
    """Here nothing was looked at before, so nothing is remembered: the folder is looked through then."""
    folder = fake_transformers(
        tmp_path,
        scan="import os\ndef create_import_structure_from_path(path): return sorted(os.listdir(path))",
        models="from ..utils import import_utils\ntable = import_utils.create_import_structure_from_path(__file__)",
    )
    assert run_python(IMPORT + "print(*[name for name in models.table if name.endswith('.py')])", folder) == [
        "__init__.py"
    ]


def test_models_that_cannot_be_imported_leave_the_scan_as_it_was(tmp_path):
    folder = fake_transformers(
        tmp_path, scan="def create_import_structure_from_path(path): return 'usual'", models="raise ImportError"
    )
    script = """
        from engine.commands.imports import import_transformers
        try:
            import_transformers()
        except ImportError:
            from transformers.utils import import_utils
            print(import_utils.create_import_structure_from_path(None))
    """
    assert run_python(script, folder) == ["usual"]

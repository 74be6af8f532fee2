"""Where tests stand: each file of unit tests under the name of a module, or of a seam whose rows it runs over."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "tests" / "unit"
WITHOUT_MODULE = {
    "data/dataset/folder/test_names.py",  # spellings of file names, in every form of a dataset
    "data/dataset/test_masks.py",  # masks, in every form of a dataset
    "training/encoding/test_added_medium.py",  # a medium of one file, from its dataset to a chain of trainings
}
"""Files that test a property of several modules. README.md says when a file may be added."""


def modules(folder):
    """The modules and packages of a folder of the engine, by their last names; the folder's own, too."""
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return files | {path.name for path in folder.iterdir() if path.is_dir()} | {folder.name}


def has_module(path):
    """A file `test_x.py` or `test_x_part.py` for a module `x`; `test_every_seam.py` in a room with a registry."""
    folder = ROOT / "engine" / path.parent.relative_to(UNIT)
    if not folder.is_dir():
        return False
    name = path.stem.removeprefix("test_")
    if name.startswith("every_"):
        return any((place / "registry.py").exists() for place in (folder, folder.parent))
    return any(name == module or name.startswith(f"{module}_") for module in modules(folder))


@pytest.mark.parametrize("path", sorted(UNIT.rglob("test_*.py")), ids=lambda path: str(path.relative_to(UNIT)))
def test_a_file_of_unit_tests_has_a_module(path):
    assert has_module(path) == (str(path.relative_to(UNIT)) not in WITHOUT_MODULE)


@pytest.mark.parametrize("path", sorted(UNIT.rglob("*.py")), ids=lambda path: str(path.relative_to(UNIT)))
def test_helpers_stand_in_support(path):
    assert path.name.startswith("test_") or path.name in ("__init__.py", "conftest.py")


def test_the_exceptions_exist():
    assert all((UNIT / name).exists() for name in WITHOUT_MODULE)

"""Opening a dataset: every form gives the same rows, at the cost of reading them."""

import subprocess
import sys

import pytest

from engine.core.errors import DatasetError
from tests.support.datasets import EXPECTED, FORMS, content, metadata_jsonl, opened, parquet_file, write_images


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_rows_and_fingerprint(form, tmp_path):
    dataset = opened(tmp_path, name=form(tmp_path / "data"))
    assert content(dataset) == EXPECTED
    assert dataset.revision is None
    assert dataset.fingerprint == opened(tmp_path, name=metadata_jsonl(tmp_path / "reference")).fingerprint


def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match=r"^dataset\.name is '/.*/nowhere': there is no such folder") as caught:
        opened(tmp_path, name=tmp_path / "nowhere")
    assert caught.value.key == "dataset.name"


def test_local_datasets_import_neither_torch_nor_datasets(tmp_path):
    folder, table, beside = metadata_jsonl(tmp_path / "a"), parquet_file(tmp_path / "b"), tmp_path / "c"
    write_images(beside)
    for name in ("a", "b", "sub/c"):
        (beside / f"{name}.txt").write_text("one\na (red:1.2) house")
    code = f"""
import sys
from pathlib import Path
from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
for name in {[str(folder), str(table), str(beside)]}:
    wanted = Dataset(name=name)
    open_dataset(wanted, IMAGE, cache_dir=Path({str(tmp_path)!r}, "cache"), revision=None, report=lambda line: None)
print([name for name in ("torch", "datasets", "huggingface_hub", "pandas") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

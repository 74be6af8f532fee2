"""Which published files can be exported."""

from types import SimpleNamespace

import pytest

from engine.core.errors import TaskError
from engine.training.methods import published
from tests.support.toy_method import TOY_METHOD


def test_a_method_whose_files_cannot_be_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "METHODS", {"toy": TOY_METHOD})
    with pytest.raises(TaskError, match="a set of biases cannot be exported: use the files"):
        published.load(tmp_path, SimpleNamespace(world={"training_type": "toy"}))

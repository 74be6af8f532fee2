"""What the Hub's client could not do, as the job's own errors."""

import errno

import pytest

from engine import hub
from engine.errors import ModelError, OutputError


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "HF_HOME"), (errno.EROFS, "HF_HOME"), (errno.ENOSPC, "disk is full")]
)
def test_a_cache_that_cannot_be_written_is_no_bug_and_no_bad_model(number, words):
    def download():
        raise OSError(number, "refused", "somewhere")

    with pytest.raises(OutputError, match=words):
        hub.with_retries(download, "base model 'a/b'", refused=ModelError)

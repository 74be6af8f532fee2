"""WebDataset tars that are refused."""

import pytest

from tests.support.datasets import PICTURES, require_refused, write_tar

PAIR = [("1.png", b"x"), ("1.txt", b"y")]


BAD = {
    "tar without captions": (lambda f: write_tar(f / "a.tar", [("1.png", PICTURES[0])]), r"'text'.*png \(images\)"),
    "tar sample without image": (lambda f: write_tar(f / "a.tar", [*PAIR, ("2.txt", b"y")]), "'/2'"),
    "tar with a name twice": (lambda f: write_tar(f / "a.tar", [("1.png", b"x"), ("1.png", b"y")]), "twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_its_place(case, tmp_path):
    build, message = BAD[case]
    require_refused(tmp_path, build, message)

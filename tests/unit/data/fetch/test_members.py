"""Names of an archive's members: which are cleaned, which are refused, which make a WebDataset."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import DatasetError
from engine.data.fetch.members import clean_name, is_webdataset
from tests.support.archives import FILES, pages, refusal, tar_of, zip_of, zip_with


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1.png", "1.txt"], True),
        (["a/1.seg.png", "a/1.jpg", "a/1.json", "README"], True),
        (["1.JPG", "1.cls"], True),
        (["1.png", "1.txt", "2.png"], False),
        (["1.png", "1.txt", "metadata.jsonl"], False),
        (["1.png", "b/1.txt"], False),
        (["1.txt"], False),
        ([], False),
    ],
)
def test_what_a_webdataset_is(names, expected):
    assert is_webdataset(names) is expected


UNSAFE_NAMES = {
    "../x": "leads out",
    "a/../../x": "leads out",
    "a/..": "leads out",
    "/etc/x": "absolute",
    "C:x": "Windows",
    "a\nb": "control",
    "a\x9bb": "control",
    "n" * 256: "too long",
    "d/" * 600 + "x": "too long",
    "d/" * 80 + "x": "deep",
}


@pytest.mark.parametrize(("name", "reason"), UNSAFE_NAMES.items())
def test_unsafe_names(tmp_path, name, reason):
    for number, data in enumerate([tar_of({"ok.png": b"1", name: b"x"}), zip_with(name)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert reason in refusal(folder, data)


def test_backslashes_in_a_tar_are_refused(tmp_path):
    assert "Windows" in refusal(tmp_path, tar_of({"a\\x": b"x"}))


def test_a_zip_packed_with_backslashes_is_read(tmp_path):
    """As Windows PowerShell 5 writes them."""
    data = zip_of({f"cats_{name}": data for name, data in FILES.items()}).replace(b"cats_", b"cats\\")
    assert pages(tmp_path, data) == FILES


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "a\\..\\x": "leads out",
        "..\\x": "leads out",
        "\\etc\\x": "absolute",
        "C:\\x": "Windows",
        "\\C:\\x": "Windows",
        "\\\\host\\share\\x": "Windows",
        "d\\" * 80 + "x": "deep",
    }.items(),
)
def test_backslashes_get_nothing_past_the_checks(tmp_path, name, reason):
    assert reason in refusal(tmp_path, zip_with(name))


def test_two_spellings_of_one_path(tmp_path):
    data = zip_of({"a/x.png": b"1", "a_x.png": b"2"}).replace(b"a_x.png", b"a\\x.png")
    assert "there twice" in refusal(tmp_path, data)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_clean_names_stay_inside(name):
    try:
        path = clean_name(name)
    except DatasetError:
        return
    if path is not None:
        assert path and not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))

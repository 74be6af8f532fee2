"""URLs without their secrets."""

import pytest

from engine.core.redact import public, shown_url


@pytest.mark.parametrize(
    "text, expected",
    [
        ("https://me:pw@example.org:8/a?k=1#f", "https://example.org:8/a?…#…"),
        ("https://me:se cret@example.org/a", "https://example.org/a"),
        ("https://me:s@cret@example.org/a", "https://example.org/a"),
        ("HTTP://me@[::1]:8/", "HTTP://[::1]:8/"),
        ("http://a.example/x and http://me:pw@b.example/y?k=1 too", "http://a.example/x and http://b.example/y?… too"),
        ("no address: me@example.org", "no address: me@example.org"),
        ("", ""),
    ],
)
def test_no_secret_is_left(text, expected):
    assert public(text) == expected


def test_one_in_a_message():
    assert shown_url("https://me:pw@example.org:8/a\x07b?k=1#f") == r"https://example.org:8/a\x07b?…#…"
    assert len(shown_url("https://example.org/" + "a" * 1000)) == 100

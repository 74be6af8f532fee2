"""Text from strangers in a report: shown as text, secrets removed."""

import dataclasses
import re

import pytest

from engine.results.report import render
from tests.support.reports import Page, sample, task_entry


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("</p></main><img src=x onerror=alert(1)>", "</p></main><img src=x onerror=alert(1)>"),
        ("</style><!-- ]]> <![CDATA[", "</style><!-- ]]> <![CDATA["),
        ('" onload="x" \' &amp; &#60;', '" onload="x" \' &amp; &#60;'),
        ("a\x00b\x1b[31m\x7f\x85", "a⟨U+0000⟩b⟨U+001B⟩[31m⟨U+007F⟩⟨U+0085⟩"),
        ("gpj\u202egnp.exe\u2066", "gpj⟨U+202E⟩gnp.exe⟨U+2066⟩"),
        ("\u200bzero\u2060width\ufeff", "⟨U+200B⟩zero⟨U+2060⟩width⟨U+FEFF⟩"),
        ("half \ud83d a pair \uffff", "half ⟨U+D83D⟩ a pair ⟨U+FFFF⟩"),
        ("👩\u200d🚀 قلعة", "👩\u200d🚀 قلعة"),
        ("two\r\nlines\rand a half", "two lines⟨U+000D⟩and a half"),
        ("x" * 10_000, "x" * 10_000),
    ],
)
def test_what_strangers_wrote_is_shown_as_text(given, shown):
    harmless = sample(skipped=[("x", "x")], versions={"x": "x"})
    picture = dataclasses.replace(sample().pictures[0], prompt=given)
    text = render(sample(pictures=[picture], skipped=[(given, given)], title=given, versions={given: given}))
    page = Page(text)
    assert page.text.count(shown) >= 5
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in Page(render(harmless)).elements]
    text.encode()


def test_a_checkpoint_can_not_speak_html_either():
    evil = '"><script>x</script>'
    entry = {"from_step": 0, "to_step": evil, "parent": evil, "changed": {evil: [evil, {evil: evil}]}}
    entry |= {"device": {"name": evil, evil: evil}, "versions": {evil: evil}}
    page = Page(render(sample(lineage=[entry, entry], task={evil: evil}, checkpoint_digest=evil, device={evil: evil})))
    assert page.named("script") == []
    assert page.text.count("<script>") > 10


def test_urls_lose_what_may_be_secret():
    url = "https://user:pass%40@host.example:8443/data.zip?X-Signature=secret&b=1#token"
    changed = {"dataset.url": [None, url]}
    lineage = [task_entry(0, 40), task_entry(40, 60, changed=changed)]
    text = render(sample(task={"dataset": {"url": url}, "x": [url]}, title=f"trained on {url}", lineage=lineage))
    for secret in ("user", "pass", "secret", "token"):
        assert not re.search(rf"\b{secret}\b", text), secret
    assert Page(text).text.count("https://host.example:8443/data.zip?…#…") == 5

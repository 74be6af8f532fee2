"""Untrusted text in Markdown and YAML, read back by other programs' rules."""

import pytest
import yaml

from engine.results.report.markdown import MAX_CHARACTERS, cell, code, fenced, line, quoted

HOSTILE = [
    "plain",
    "`",
    "a `b` ``c`` d```",
    "</script><img src=x onerror=alert(1)>",
    "[link](javascript:x) ![](http://x/y.png) http://x",
    "| a | b \\| c",
    "# heading\n---\nkey: value\n...\n",
    '"quoted" \\ \\n \\u0041 {{ x }}',
    "yes",
    "0o14",
    "- !!python/object/apply:os.system [x]",
    "&anchor *alias",
    "\u2028\u2029\x85\u202e\ufeff\x00\x1b[31m",
    "日本語 🐈 é",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_yaml_reads_the_same_line(text):
    source = quoted(text)
    assert "\n" not in source and yaml.safe_load(f"- key: {source}") == [{"key": line(text)}]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_code_span_is_closed_by_its_own_fence_alone(text):
    """CommonMark, 6.1: it ends at the first run of backticks as long as the one that opens it."""
    span = code(text)
    opening = span[: len(span) - len(span.lstrip("`"))]
    if line(text):
        inner = span[len(opening) : -len(opening)]
        runs = {len(run) for run in "".join(char if char == "`" else " " for char in inner).split()}
        assert span.endswith(opening) and len(opening) not in runs and inner.strip() == line(text)
    assert "\n" not in span


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_has_no_bare_bar(text):
    found = cell(text)
    assert all(found[i - 1] == "\\" for i, char in enumerate(found) if char == "|")


def test_a_fence_that_the_code_does_not_end():
    assert fenced("x = '````'\n```", "python") == "`````python\nx = '````'\n```\n`````"
    assert fenced("x", "python") == "```python\nx\n```"


def test_one_line_of_bounded_length():
    assert line("a\r\n\tb\x00c ") == "a b c"
    assert line("é" * 2000) == "é" * MAX_CHARACTERS + "…"

"""Every relative link in a Markdown file of this repository leads to a file, and its anchor to a heading there.

A path of the repository that a document names in backticks exists, too.
"""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_OURS = {"build", "out", "cache", "task"}
"""Folders at the top that git ignores and people fill."""
# What documents name before it is there. To be emptied.
AWAITED = {"tests/README.md"}
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)|(?:href|src)=\"([^\"]+)\"", re.M)
HEADING = re.compile(r"^#{1,6} +(.*?)(?: +#+)?$", re.MULTILINE)
PATH = re.compile(r"`((?:engine|tests|docs|tools|benchmarks|examples|assets|deploy|schema)/[\w./-]*)`")
TEST_FILE = re.compile(r"`(test_\w+\.py)`")


def documents():
    found = []
    for folder, names, files in os.walk(ROOT):
        here = Path(folder)
        names[:] = [n for n in names if not n.startswith(".") and not (here == ROOT and n in NOT_OURS)]
        found += [here / name for name in files if name.endswith(".md")]
    return sorted(found)


def anchors(text):
    """The anchors that GitHub gives a document's headings: words in lower case joined by hyphens, repeats numbered."""
    seen = Counter()
    found = set()
    for title in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(text):
    """The relative links of a document, as they are written."""
    prose = CODE.sub("``", FENCE.sub("", text))
    targets = ("".join(groups) for groups in LINK.findall(prose))
    return [target for target in targets if not re.match(r"[a-z][a-z+.-]*:", target)]


def is_awaited(path):
    return path.is_relative_to(ROOT) and str(path.relative_to(ROOT)) in AWAITED


def broken(document, target, *, root=ROOT):
    """Why a link leads nowhere; None where it is whole."""
    name, _, anchor = target.partition("#")
    path = (document.parent / name).resolve() if name else document
    if not path.exists() and not is_awaited(path):
        return f"{target}: no such file"
    if not path.is_relative_to(root):
        return f"{target}: outside the repository"
    if anchor and anchor not in anchors(path.read_text()):
        return f"{target}: no such heading"
    return None


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document):
    found = (broken(document, target) for target in links(document.read_text()))
    assert [why for why in found if why] == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_backticks_exist(document):
    named = PATH.findall(FENCE.sub("", document.read_text()))
    assert [name for name in named if not (ROOT / name).exists() and name not in AWAITED] == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_test_files_in_backticks_exist(document):
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(TEST_FILE.findall(document.read_text())) <= there


@pytest.mark.parametrize(
    "target, why",
    [
        ("there.md", None),
        ("there.md#the-first-a_b", None),
        ("there.md#twice-1", None),
        ("#here", None),
        ("away.md", "away.md: no such file"),
        ("there.md#second", "there.md#second: no such heading"),
        ("there.md#in-a-fence", "there.md#in-a-fence: no such heading"),
    ],
)
def test_a_broken_link_is_found(tmp_path, target, why):
    (tmp_path / "there.md").write_text("# The *first*: `a_b`\n## Twice\n## Twice\n```sh\n# in a fence\n```\n")
    document = tmp_path / "here.md"
    document.write_text(f"# Here\n[a link]({target}), `[no](link.md)`, [far](https://example.org/x.md)\n")
    assert links(document.read_text()) == [target]
    assert broken(document, target, root=tmp_path) == why


def test_the_tree_in_the_architecture_is_the_engines():
    """Every folder of the engine, in the place that its indentation says."""
    (tree,) = re.findall(r"^engine/\n((?:  .*\n)+)", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    told, path = set(), []
    for line in tree.splitlines():
        indent, name = re.match(r"( +)(\w+)/  ", line).groups()
        path[len(indent) // 2 - 1 :] = [name]
        told.add("/".join(path))
    engine = ROOT / "engine"
    there = {str(found.parent.relative_to(engine)) for found in engine.rglob("*.py") if found.parent != engine}
    assert told - {name.removeprefix("engine/").rstrip("/") for name in AWAITED} == there

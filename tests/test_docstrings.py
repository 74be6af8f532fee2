"""Docstrings of the engine begin with a verb phrase or name the thing: no fragment that begins in mid-sentence."""

import ast
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[1] / "engine"
ROOMS = sorted(path.name for path in ENGINE.iterdir() if (path / "__init__.py").exists())
FRAGMENT = {
    *(
        "about",
        "after",
        "again",
        "also",
        "among",
        "as",
        "at",
        "before",
        "between",
        "beyond",
        "by",
        "for",
        "from",
        "how",
    ),
    *("how", "if", "in", "it", "nobody", "not", "nothing", "of", "on", "only", "so", "somebody", "that", "there"),
    *("these", "those", "to", "what", "when", "where", "whether", "which", "who", "whose", "why", "with", "without"),
}
"""Prepositions, question words, pronouns: a sentence of a manual begins with none of them."""


def docstrings(tree):
    """Every string that stands alone: those of modules, classes, functions, fields and constants, with their lines."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text


def fragments(folder):
    for path in sorted(folder.rglob("*.py")):
        for line, text in docstrings(ast.parse(path.read_text())):
            first = text.split(maxsplit=1)[0] if text.strip() else ""
            if not first or first.strip(",:.").lower() in FRAGMENT:
                yield f"{path.relative_to(ENGINE)}:{line}: {text.strip().partition(chr(10))[0]}"


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_begin_as_those_of_a_manual(room):
    assert list(fragments(ENGINE / room)) == []


@pytest.mark.parametrize(
    "text, count",
    [
        ('"""Return a size."""', 0),
        ('"""Of the size."""', 1),
        ('X = 1\n"""What it is."""', 1),
        ('class A:\n    x: int\n    """In bytes."""', 1),
        ('def f():\n    """ """', 1),
    ],
)
def test_they_are_found(text, count, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ENGINE", tmp_path)
    (tmp_path / "module.py").write_text(text)
    assert len(list(fragments(tmp_path))) == count

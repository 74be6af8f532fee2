"""A JSON parser that is stricter than `json` and gives the position of every problem.

The standard decoder lets duplicate keys, NaN and 1e999 through and tells its hooks no positions, so this is a small
recursive descent of its own. What does not hide the rest of the text (a duplicate key, NaN) is noted and read over;
anything else ends the reading.
"""

from __future__ import annotations

import codecs
import functools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from engine.core.messages import as_json, json_clipped

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_STRING_START: Final = re.compile(r'"(?:[^"\\\x00-\x1f]+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
_WORD: Final = re.compile(r'[^ \t\n\r,:\[\]{}"]*')
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}")
_LITERALS: Final = {"null": None, "true": True, "false": False}
_NON_FINITE: Final = ("NaN", "Infinity", "-Infinity")
_MAX_DEPTH: Final = 100
MAX_PROBLEMS: Final = 100
"""Reading ends after one more: finding each position takes time proportional to the text's length."""

Keys = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at one place; `str(problem)` is one line."""

    path: str
    """The path, such as `train_args.batch_size` or `lora.target_modules[2]`; empty for the whole text."""
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class Real(float):
    """A number written with a point or an exponent: never an integer, whatever its value.

    JSON Schema takes 1.0 for an integer; fastjsonschema asks the value itself, so this answer is enough.
    """

    __slots__ = ()

    def is_integer(self) -> bool:
        return False


def child(path: str, part: str | int) -> str:
    """The path of a member; a key that is no plain name is quoted: `lora["a b"]`."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    if _NAME.fullmatch(part):
        return f"{path}.{part}" if path else part
    return f"{path}[{as_json(part)}]"


def parse(data: bytes) -> tuple[Any, list[Problem]]:
    """Read one JSON value. Where problems come back the value is only good for finding more of them.

    Numbers with a point or an exponent become `Real`. Every number, integers too, lies within the range of a 64-bit
    float; one that does not is a problem and comes back as an infinity or NaN.
    """
    try:
        return _Reader.of(_decode(data))
    except _UnreadableError as error:
        return None, error.problems


class _UnreadableError(Exception):
    """The text cannot be read any further."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__()
        self.problems = problems


def _decode(data: bytes) -> str:
    if data.startswith(codecs.BOM_UTF8):
        raise _UnreadableError([Problem("", "line 1, column 1: a byte order mark, save the text as UTF-8 without BOM")])
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _UnreadableError([Problem("", "line 1, column 1: the text is UTF-16, save it as UTF-8 without BOM")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = _place(data[: error.start].decode(), error.start)
        byte = data[error.start]
        raise _UnreadableError(
            [Problem("", f"{place}: byte 0x{byte:02x} is not UTF-8, save the text as UTF-8")]
        ) from None


def _place(text: str, position: int) -> str:
    """Lines and columns count from 1, columns in characters."""
    before = text[:position]
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _at(pattern: re.Pattern[str], text: str, position: int) -> re.Match[str]:
    """The match of a pattern that cannot fail there."""
    match = pattern.match(text, position)
    assert match is not None
    return match


class _Reader:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.problems: list[Problem] = []

    @classmethod
    def of(cls, text: str) -> tuple[Any, list[Problem]]:
        reader = cls(text)
        reader.skip_space()
        if reader.position == len(text):
            reader.stop(0, "the text is empty, expected an object { … }")
        value = reader.value(())
        reader.skip_space()
        if reader.position < len(text):
            reader.stop(reader.position, f"expected the end of the text, found {reader.found()}")
        return value, reader.problems

    def note(self, position: int, path: Keys, message: str) -> None:
        self.problems.append(Problem(functools.reduce(child, path, ""), f"{message} ({_place(self.text, position)})"))
        if len(self.problems) > MAX_PROBLEMS:
            raise _UnreadableError(self.problems)

    def stop(self, position: int, message: str) -> NoReturn:
        raise _UnreadableError([*self.problems, Problem("", f"{_place(self.text, position)}: {message}")])

    def skip_space(self) -> None:
        self.position = _at(_SPACE, self.text, self.position).end()

    def next(self) -> str:
        """The character at the position, empty at the end of the text."""
        return self.text[self.position : self.position + 1]

    def found(self) -> str:
        """Describe the text at the position, for a message."""
        if self.position == len(self.text):
            return "the end of the text"
        if string := _STRING_START.match(self.text, self.position):
            return json_clipped(self.text[self.position : string.end() + 1])
        word = _at(_WORD, self.text, self.position)[0] or self.next()
        if word.startswith(("//", "/*", "#")):
            return "a comment, which JSON does not have: remove it"
        return json_clipped(word)

    def value(self, path: Keys) -> Any:
        if len(path) > _MAX_DEPTH:
            self.stop(self.position, f"nested more than {_MAX_DEPTH} levels deep")
        match self.next():
            case "{":
                return self.object(path)
            case "[":
                return self.array(path)
            case '"':
                return self.string(path)
            case _:
                return self.scalar(path)

    def object(self, path: Keys) -> dict[str, Any]:
        result: dict[str, Any] = {}
        opening = self.position
        places: dict[str, int] = {}
        while self.more("}", opening, first=not places):
            start = self.position
            if self.next() != '"':
                self.stop(start, f"expected a key in double quotes, found {self.found()}")
            key = self.string(path)
            if key in places:
                first = _place(self.text, places[key])
                self.note(start, (*path, key), f"the key appears twice, also at {first}")
            places[key] = start
            self.skip_space()
            if self.next() != ":":
                self.stop(self.position, f'expected ":" after the key {as_json(key)}, found {self.found()}')
            self.position += 1
            self.skip_space()
            result[key] = self.value((*path, key))
        return result

    def array(self, path: Keys) -> list[Any]:
        result: list[Any] = []
        opening = self.position
        while self.more("]", opening, first=not result):
            result.append(self.value((*path, len(result))))
        return result

    def more(self, closing: str, opening: int, *, first: bool) -> bool:
        """Go to the next member of the object or array that begins at `opening`; false behind its end."""
        if first:
            self.position += 1
        self.skip_space()
        comma = self.position
        if not first and self.next() == ",":
            self.position += 1
            self.skip_space()
            if self.next() == closing:
                self.stop(comma, f"a trailing comma, remove it before {closing}")
            return True
        if self.next() == closing:
            self.position += 1
            return False
        if not self.next():
            self.stop(self.position, f"the text ends before the {closing} that closes {_place(self.text, opening)}")
        if not first:
            self.stop(self.position, f'expected "," or "{closing}", found {self.found()}')
        return True

    def string(self, path: Keys) -> str:
        start = self.position
        end = _at(_STRING_START, self.text, start).end()
        match self.text[end : end + 1]:
            case '"':
                self.position = end + 1
            case "":
                self.stop(start, "a string that does not end")
            case "\\":
                self.stop(end, f"unknown escape {json_clipped(self.text[end : end + 2])} in a string")
            case "\n" | "\r":
                self.stop(end, "a line break in a string, write \\n for one or add the closing quote")
            case control:
                self.stop(end, f"a control character in a string, write \\u{ord(control):04x}")
        value: str = json.loads(self.text[start : self.position])
        if _SURROGATE.search(value):
            self.note(
                start, path, f"got {as_json(value)}, which holds half of a surrogate pair, write the character itself"
            )
        return value

    def scalar(self, path: Keys) -> Any:
        start = self.position
        word = _at(_WORD, self.text, start)[0]
        if word in _LITERALS:
            self.position += len(word)
            return _LITERALS[word]
        if word in _NON_FINITE:
            self.position += len(word)
            self.note(start, path, f"got {word}, expected a finite number")
            return Real(word.lower())
        number = _NUMBER.fullmatch(word)
        if number is None:
            self.stop(start, _not_a_value(self.found(), path))
        self.position += len(word)
        if not math.isfinite(float(word)):
            self.note(start, path, f"got {json_clipped(word)}, expected a number within the range of a 64-bit float")
            return Real(word)
        return Real(word) if number[1] or number[2] else int(word)


def _not_a_value(found: str, path: Sequence[object]) -> str:
    """Describe what was found where a JSON value is expected, with advice on common mistakes."""
    python = {"True": "true", "False": "false", "None": "null", "nan": "null", "inf": "a finite number"}
    if found in python:
        return f"found {found}, write {python[found]}"
    if found.startswith("'"):
        return f"found {found}, strings take double quotes"
    return f"expected {'a value' if path else 'an object { … }'}, found {found}"


def dump_lines(values: Iterable[Any]) -> bytes:
    """Write a line of JSON for each value, floats so that they read back to the same bits."""
    return b"".join(json.dumps(value, allow_nan=False).encode() + b"\n" for value in values)


def parse_lines(data: bytes) -> list[Any]:
    """Return what `dump_lines` was given.

    Raises:
        ValueError: no JSON, or other bytes than `dump_lines` writes for the same values.
    """
    values = [json.loads(line) for line in data.splitlines()]
    if dump_lines(values) != data:
        raise ValueError("a line is not written as this program writes it")
    return values

"""Read JSON and CSV files as dictionaries, with the standard library: it keeps captions as they are written ("007")."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from engine.core.errors import DatasetError
from engine.core.messages import plural, short
from engine.data.dataset.rows import parse_object

MAX_LINE_BYTES: Final = 16 << 20
MAX_JSON_BYTES: Final = 1 << 30
_BLANKS: Final = " \t\r\n"
_BOM: Final = "\ufeff"
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


# --- JSON ------------------------------------------------------------------------------------------------------------


def json_records(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file: one in each line, a JSON list of objects, or objects over several lines each.

    Raises DatasetError with the line or the row.
    """
    with path.open("rb") as file:
        if file.read(2) in _UTF16:
            yield from _json_values(path, label, DatasetError(f"{label} is UTF-16 and not JSON; save it in UTF-8"))
            return
        file.seek(0)
        lines = _numbered_lines(file, label)
        first = next(lines, None)
        if first is None:
            return
        if first[1].lstrip().startswith(b"["):
            yield from _objects(json.loads(_whole(path, label)), label)
            return
        try:
            record = parse_object(first[1], f"line {first[0]} of {label}")
        except DatasetError as error:
            yield from _json_values(path, label, error)
            return
        yield record
        for number, line in lines:
            yield parse_object(line, f"line {number} of {label}")


def _numbered_lines(file: IO[bytes], label: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the text of each line that is not blank, without a byte order mark."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            if number == 1 and line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):  # a list on one line
                yield number, line
                return
            raise DatasetError(f"line {number} of {label} is longer than {MAX_LINE_BYTES:,} bytes")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def _objects(records: list[Any], label: str) -> Iterator[dict[str, Any]]:
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise DatasetError(f"row {index} of {label} is {short(record)}; expected an object")
        yield record


def _json_values(path: Path, label: str, problem: DatasetError) -> Iterator[dict[str, Any]]:
    """Yield objects that take several lines each, or share one. Raises `problem`, the error of the first line, if the
    file does not consist of such objects."""
    text, decoder = _whole(path, label), json.JSONDecoder()
    position, number = _after_blanks(text, 0), 0
    while position < len(text):
        if text[position] == "[" and not number:
            yield from _objects(decoder.decode(text[position:]), label)
            return
        try:
            record, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if "\n" in text[: error.pos]:
                raise DatasetError(f"{label} is not JSON ({error})") from None
            raise problem from None
        except RecursionError:
            raise problem from None
        if not isinstance(record, dict):
            raise DatasetError(f"row {number} of {label} is {short(record)}; expected an object")
        yield record
        position, number = _after_blanks(text, position), number + 1


def _after_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANKS:
        position += 1
    return position


def _whole(path: Path, label: str) -> str:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DatasetError(f"{label} is one JSON value of more than {MAX_JSON_BYTES:,} bytes; save it as JSON lines")
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data)).removeprefix(_BOM)


# --- CSV -------------------------------------------------------------------------------------------------------------

_DELIMITERS: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


def csv_records(path: Path, wanted: Sequence[str], label: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file as spreadsheets write it.

    The encoding is UTF-8, or UTF-16 with a byte order mark. Fields are kept as they are, unless the header has blanks
    around a wanted name: then outer blanks are removed from all names and fields. Columns without a name are left out.

    Args:
        path: the file; `.tsv` is separated by tabs.
        wanted: names of columns that the header may have; they decide on the delimiter.
        label: the file's name in messages.

    Raises:
        DatasetError: names the line.
    """
    with path.open("rb") as opened:
        encoding = "utf-16" if opened.read(2) in _UTF16 else "utf-8"
    with path.open(encoding=encoding, newline="") as file:
        try:
            yield from _csv_rows(file, path.suffix.lower() == ".tsv", wanted, label)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DatasetError(
                f"{label} is not UTF-8 text (it has a byte {byte:#04x}); save it as CSV in UTF-8"
            ) from None


def _csv_rows(file: IO[str], tabs: bool, wanted: Sequence[str], label: str) -> Iterator[dict[str, str]]:
    line, skipped = file.readline().removeprefix(_BOM), 0
    told = None
    if line.startswith("sep=") and len(line.rstrip("\r\n")) == 5:  # written by Excel
        told, line, skipped = line[4], file.readline(), 1
    if "\0" in line:
        raise DatasetError(f"{label} is UTF-16 without a byte order mark, or not text; save it as CSV in UTF-8")
    header, delimiter = _header(line, told, tabs, wanted)
    # Quoted names may contain line breaks, so the reader parses the header again.
    padded = any(name not in wanted and name.strip() in wanted for name in header)
    reader = csv.reader(_again(line, file), delimiter=delimiter, skipinitialspace=padded)
    header = [name.strip() if padded else name for name in next(reader, [])]
    named = [name for name in header if name]
    if len(set(named)) != len(named):
        raise DatasetError(f"{label} has two columns of the same name in its header: {short(header)}")
    for fields in reader:
        if len(fields) > len(header):
            what = _DELIMITERS.get(delimiter, short(delimiter))
            raise DatasetError(
                f"line {reader.line_num + skipped} of {label} has {plural(len(fields), 'field')}, its header "
                f'{len(header)}: a caption with a {what} in it needs "quotes"'
            )
        if fields:
            values = (field.strip() for field in fields) if padded else fields
            yield {name: value for name, value in zip(header, values, strict=False) if name}


def _again(line: str, file: Iterable[str]) -> Iterator[str]:
    yield line
    yield from file


def _header(line: str, told: str | None, tabs: bool, wanted: Sequence[str]) -> tuple[list[str], str]:
    """Return the names in a header, and their delimiter: the first one that gives a wanted name, else the usual one."""
    usual = told or ("\t" if tabs else ",")
    names = next(csv.reader([line], delimiter=usual), [])
    if told is None:
        for delimiter in (usual, *_DELIMITERS):
            found = next(csv.reader([line], delimiter=delimiter), [])
            if any(name.strip() in wanted for name in found):
                return found, delimiter
    return names, usual

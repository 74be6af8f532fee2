"""Read `validation.prompts_file`, a table with a validation prompt in each row. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

from engine.core.errors import DatasetError, TaskError
from engine.core.limits import bounded_memory
from engine.core.messages import listing, short, shown
from engine.data.dataset.tables.records import csv_records, json_records
from engine.data.dataset.tables.tables import reading
from engine.task.keys.validation import MAX_IMAGES
from engine.task.paths import nearest
from engine.task.schema import Schema
from engine.task.task import Prompt, Task, task_schema

_MAX_BYTES: Final = 16 << 20
_MAX_MEMORY: Final = 1 << 30
"""The memory limit while the file is parsed: a few kilobytes of Parquet can unpack to any size."""
_NUMBER: Final = re.compile(r"[+-]?[0-9]+")
_KEY: Final = "validation.prompts_file"


def with_prompts(task: Task) -> Task:
    """Return the task with the rows of its `validation.prompts_file`, if it has one, as `validation.prompts`.

    Raises:
        TaskError: the file cannot be read, or a row is invalid; the message names the row and the column.
    """
    if task.validation.prompts_file is None:
        return task
    rows = read(Path(task.validation.prompts_file))
    return replace(task, validation=replace(task.validation, prompts=rows))


def read(path: Path) -> tuple[Prompt, ...]:
    """Return the rows of a file. Raises TaskError."""
    label = shown(path.name)
    reader = _READERS.get(path.suffix.lower())
    if not path.is_file():
        raise TaskError(f"{_KEY}: there is no file {shown(str(path))}{nearest(path)}; a local file is expected")
    if reader is None:
        raise TaskError(f"{_KEY} is {label}: expected a name that ends with {', '.join(_READERS)}")
    if path.stat().st_size > _MAX_BYTES:
        raise TaskError(f"{_KEY}: {label} has more than {_MAX_BYTES >> 20} MiB")
    try:
        with reading(label), bounded_memory(_MAX_MEMORY):
            records = list(islice(reader(path, label), MAX_IMAGES + 1))
    except DatasetError as error:
        raise TaskError(f"{_KEY}: {error}") from None
    if not records or len(records) > MAX_IMAGES:
        found = f"more than {MAX_IMAGES} rows" if records else "no rows"
        raise TaskError(f"{_KEY}: {label} has {found}: expected a row for each prompt, at most {MAX_IMAGES}")
    return tuple(_prompt(record, f"row {number} of {label}") for number, record in enumerate(records))


def _prompt(record: Mapping[str, Any], where: str) -> Prompt:
    """Return the prompt of a row; `where` names it in messages."""
    values = {column: _plain(column, value) for column, value in record.items()}
    given = {column: value for column, value in values.items() if value is not None}
    problems = _schema().problems(given)
    if problems:
        found = "; ".join(f"column {problem}" for problem in problems)
        raise TaskError(f"{_KEY}: {where} (the first is row 0): {found}")
    if (scale := given.get("guidance_scale")) is not None:
        given["guidance_scale"] = float(scale)
    return Prompt(**given)


@cache
def _schema() -> Schema:
    """Return the schema of a row: that of an object in `validation.prompts`."""
    keys = task_schema().definition["properties"]["validation"]["properties"]["prompts"]["items"]
    return Schema({**keys, "type": "object"})


def _plain(column: str, value: Any) -> Any:
    """Return a cell's value as a task would have it; None for an empty cell."""
    types = _schema().definition["properties"].get(column, {}).get("type", ())
    is_number, is_whole = "number" in types or "integer" in types, "integer" in types
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) and column != "prompt":
        value = value.strip() if is_number else value
        if not value:
            return None
        if is_number:
            return _number(value)
    if is_whole and isinstance(value, float) and value.is_integer():  # as pandas stores a column with empty cells
        return int(value)
    return value


def _number(text: str) -> Any:
    """Return the number in a cell of text; the text itself if it is none, which the schema refuses."""
    if _NUMBER.fullmatch(text):
        return int(text) if len(text) < 20 else text
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def _csv(path: Path, label: str) -> Iterable[dict[str, Any]]:
    return csv_records(path, list(_schema().definition["properties"]), label)


def _parquet(path: Path, label: str) -> Iterable[dict[str, Any]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    known = _schema().definition["properties"]
    foreign = [name for name in file.schema_arrow.names if name not in known]
    if foreign:  # before they are read, since they may be large
        raise DatasetError(f"{label} has a column {listing(foreign, short)}; the known ones are {', '.join(known)}")
    for batch in file.iter_batches(MAX_IMAGES + 1):
        yield from batch.to_pylist()


_READERS: Final[Mapping[str, Callable[[Path, str], Iterable[dict[str, Any]]]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": json_records,
    ".jsonl": json_records,
    ".parquet": _parquet,
}
"""The suffix of a file -> its reader, which yields rows and raises DatasetError."""

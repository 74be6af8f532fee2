"""Read the configurations that a Hub dataset's README.md declares, and match the files of one as 🤗 datasets does.

https://huggingface.co/docs/hub/datasets-manual-configuration
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from engine.core.errors import DatasetError
from engine.core.messages import listing, short, shown
from engine.data.dataset.folder.splits import TRAIN
from engine.data.media.medium import Medium

README: Final = "README.md"
STANDALONE: Final = ".huggingface.yaml"
"""The file that takes precedence over the README."""
DESCRIPTIONS: Final = frozenset({README, "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"})
"""Files that no pattern matches."""
MAX_README_BYTES: Final = 1 << 20
MAX_PATTERNS: Final = 1000
METADATA_NAMES: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
IMAGES: Final = "images"
# The order decides between kinds with equally many files.
_TABLES: Final = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".ndjson", ".tar", ".tsv")
_KINDS: Final = {".jsonl": ".json", ".ndjson": ".json", ".tsv": ".csv"}
"""Suffix -> the suffix of the kind that the same reader of 🤗 datasets reads."""

_UNDERSTOOD: Final = frozenset({"config_name", "data_files", "data_dir", "default"})
# Keys about labels, names and types of columns that are not used here, or that do not concern rows.
_WITHOUT_EFFECT: Final = frozenset({"description", "version", "drop_labels", "features", "sep", "delimiter"})
_WILDCARD: Final = re.compile(r"[*?\[]")
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|.*::", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration: its folder, and the files of each split."""

    name: str
    folder: str
    """Relative to the dataset's folder; patterns are relative to it."""
    patterns: Mapping[str, Sequence[str]] | None
    """Split -> patterns; None if the names of files and folders decide on the split."""

    def files(self, files: Sequence[str]) -> dict[str, list[str]]:
        """Return split -> the files that its patterns match, in the order of the patterns.

        `files` are sorted relative paths. Raises DatasetError if a pattern without wildcards matches no file, or a
        pattern is invalid.
        """
        assert self.patterns is not None, "this configuration has no patterns"
        there = {file: [file] for file in files}
        return {split: self._matched(split, patterns, files, there) for split, patterns in self.patterns.items()}

    def _matched(
        self, split: str, patterns: Sequence[str], files: Sequence[str], there: Mapping[str, list[str]]
    ) -> list[str]:
        found: list[str] = []
        for pattern in patterns:
            is_plain = not _WILDCARD.search(pattern)
            among = there.get(pattern.removeprefix("./"), []) if is_plain else files
            own = _matching(pattern, among, f"{self._where(split)}: the pattern {short(pattern)}")
            if is_plain and not own:
                raise DatasetError(f"{self._where(split)} lists {short(pattern)}: there is no such file")
            found += own
        return found

    def _where(self, split: str) -> str:
        return f"{README}, configuration {self.name!r}, split {split!r}"


def choose_configuration(root: Path, wanted: str | None) -> Configuration | None:
    """Return a configuration of a dataset's folder; None means that the folder is read as it is.

    `wanted` is a declared configuration or a sub-folder; None is the default configuration. Raises DatasetError, with
    the list of declared configurations, if it does not exist or there is no default, and for a malformed declaration.
    """
    wanted = wanted or None
    declared = _declared(root)
    if not declared:
        if wanted is None or wanted == "default":
            return None
        if is_folder(root, wanted):
            return Configuration(wanted, wanted, None)
        raise DatasetError(f"is {wanted!r}, but {root.name} has no folder of that name", key="dataset.config_name")
    listed = listing(list(declared), most=8)
    if wanted is None or (wanted == "default" and wanted not in declared):
        wanted = _default(declared, listed)
    if wanted not in declared:
        if is_folder(root, wanted):
            return Configuration(wanted, wanted, None)
        raise DatasetError(
            f"is {wanted!r}, but {README} declares no configuration of that name; its configurations: {listed}",
            key="dataset.config_name",
        )
    return _configuration(wanted, declared[wanted])


def is_folder(root: Path, name: str) -> bool:
    """Return whether a configuration is a sub-folder of that name, as `push_to_hub` writes them."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name and (root / name).is_dir()


def kind_of_files(files: Iterable[str], medium: Medium) -> str | None:
    """Return the most frequent kind of a configuration's files: a table's suffix, or `IMAGES`; None if neither."""
    counts: Counter[str] = Counter()
    metadata: Counter[str] = Counter()
    for file in files:
        name = PurePosixPath(file)
        suffix = IMAGES if medium.has_name(file) else _KINDS.get(name.suffix.lower(), name.suffix.lower())
        if suffix == IMAGES or suffix in _TABLES:
            (metadata if name.name in METADATA_NAMES else counts)[suffix] += 1
    if not counts:
        return IMAGES if metadata else None
    return min(counts, key=lambda suffix: (-counts[suffix], (*_TABLES, IMAGES).index(suffix)))


def is_of_kind(file: str, kind: str) -> bool:
    """Return whether a table is of the kind that `kind_of_files` returned."""
    suffix = PurePosixPath(file).suffix.lower()
    return _KINDS.get(suffix, suffix) == kind


def _declared(root: Path) -> dict[str, dict[str, Any]]:
    """Return the entries under `configs:` by their names."""
    label, card = _card(root)
    configs = card.get("configs")
    if not configs:
        return {}
    if not isinstance(configs, list) or not all(isinstance(entry, dict) for entry in configs):
        raise DatasetError(f"{label}: configs: expected a list of configurations, got {short(configs)}")
    for entry in configs:
        if not isinstance(entry.get("config_name"), str):
            raise DatasetError(f"{label}: configs: a configuration has no config_name: {short(entry)}")
    return {entry["config_name"]: entry for entry in configs}


def _card(root: Path) -> tuple[str, dict[str, Any]]:
    """Return the file with a dataset's YAML, and the YAML. Raises DatasetError."""
    standalone = root / STANDALONE
    if standalone.is_file():
        found = _parsed(_text(standalone), STANDALONE)
        if "configs" in found:
            return STANDALONE, found
    readme = root / README
    lines = _text(readme).splitlines() if readme.is_file() else []
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return README, {}
    return README, _parsed("\n".join(lines[1 : lines.index("---", 1)]), README)


def _text(path: Path) -> str:
    """Return a file's text. Raises DatasetError if it is larger than `MAX_README_BYTES`."""
    if path.stat().st_size > MAX_README_BYTES:
        raise DatasetError(f"{path.name} has more than {MAX_README_BYTES:,} bytes; remove it from the folder")
    return path.read_text("utf-8-sig", errors="replace")


def _parsed(text: str, label: str) -> dict[str, Any]:
    """Return the parsed YAML; {} if it has no key `configs`. Raises DatasetError if YAML with that key is malformed."""
    if not re.search(r"^configs\s*:", text, re.MULTILINE):
        return {}
    import yaml

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has aliases (*), which are refused because they can expand without limit")
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = shown(" ".join(str(error).split()))
        raise DatasetError(f"{label} declares configurations, but its YAML cannot be read: {reason}") from None
    return found if isinstance(found, dict) else {}


def _default(declared: Mapping[str, Mapping[str, Any]], listed: str) -> str:
    if len(declared) == 1:
        return next(iter(declared))
    names = [name for name, entry in declared.items() if name == "default" or entry.get("default")]
    if len(names) == 1:
        return names[0]
    what = "several default configurations" if names else "several configurations and no default one"
    raise DatasetError(f"{README} declares {what}: set dataset.config_name to one of {listed}")


def _configuration(name: str, entry: Mapping[str, Any]) -> Configuration:
    where = f"{README}, configuration {name!r}"
    unknown = sorted(str(key) for key in entry if key not in _UNDERSTOOD | _WITHOUT_EFFECT)
    if unknown:
        raise DatasetError(
            f"{where} has {listing(unknown)}, which is not supported; write a table of the wanted images and captions, "
            "and name that table"
        )
    folder = entry.get("data_dir") or ""
    if not isinstance(folder, str) or not _is_inside(folder):
        raise DatasetError(f"{where}: data_dir is {short(folder)}; expected a folder inside the dataset's")
    return Configuration(name, folder.strip("/"), _patterns(entry.get("data_files"), where))


def _patterns(data_files: Any, where: str) -> dict[str, list[str]] | None:
    """Return split -> patterns, from any of the forms in which `data_files` is written."""
    if data_files is None:
        return None
    entries = [data_files] if isinstance(data_files, str) else data_files
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f"{where}: data_files is {short(data_files)}; expected patterns, or splits with their paths")
    patterns: dict[str, list[str]] = {}
    if all(isinstance(entry, str) for entry in entries):
        patterns[TRAIN], entries = entries, []
    for entry in entries:
        split, paths = _split_and_paths(entry)
        if split is None or split in patterns or not all(isinstance(path, str) for path in paths):
            raise DatasetError(
                f"{where}: data_files has {short(entry)}; expected a split not listed before, and its path"
            )
        patterns[split] = paths
    if sum(bool(_WILDCARD.search(path)) for paths in patterns.values() for path in paths) > MAX_PATTERNS:
        raise DatasetError(f"{where}: data_files has more than {MAX_PATTERNS:,} patterns")
    return patterns


def _split_and_paths(entry: Any) -> tuple[str | None, list[Any]]:
    if not isinstance(entry, dict) or set(entry) != {"split", "path"} or not isinstance(entry["split"], str):
        return None, []
    return entry["split"], entry["path"] if isinstance(entry["path"], list) else [entry["path"]]


def _matching(pattern: str, files: Sequence[str], what: str) -> list[str]:
    """Return the files that a pattern matches. Raises DatasetError if it is invalid or leads out of the folder."""
    if _ADDRESS.match(pattern) or not _is_inside(pattern):
        raise DatasetError(
            f"{what} leads out of the dataset's folder or into an archive: put the files into the folder"
        )
    parts = pattern.removeprefix("./").split("/")
    if any("**" in part and part != "**" for part in parts):
        raise DatasetError(f"{what} is not supported: ** stands for whole folders")
    return [
        file for file in files if PurePosixPath(file).name not in DESCRIPTIONS and glob_matches(parts, file.split("/"))
    ]


def glob_matches(parts: Sequence[str], path: Sequence[str]) -> bool:
    """Return whether a path matches a pattern, both split at "/", with the rules of fsspec's `glob`, in bounded time.

    All states of the pattern are followed at once: a regular expression made from an untrusted pattern could take
    exponential time.
    """
    end = len(parts)
    reached = {0}
    for segment in path:
        for place in range(end - 1):  # ** matches no folder too, but at the end of the pattern at least one name
            if place in reached and parts[place] == "**":
                reached.add(place + 1)
        stays = {place for place in reached if place < end and parts[place] == "**"}
        goes = {place + 1 for place in reached - stays if place < end and _compiled(parts[place]).match(segment)}
        reached = stays | goes | ({end} if end - 1 in stays else set())
    return end in reached


@lru_cache(maxsize=1024)
def _compiled(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))  # uses atomic groups, so that it does not backtrack


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts and "\0" not in path

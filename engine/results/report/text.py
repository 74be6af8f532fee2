"""Format values for the report: untrusted text as harmless HTML, numbers with their units."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from engine.core.redact import public
from engine.results.report.curves import LARGEST

_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)

_FOLDERS: Final = re.compile(r"(?<![\w:/.~…-])/(?:[^\s/'\"`,;]+/)+")
"""The folders of an absolute path; not the path of a URL."""


def as_html(value: str) -> str:
    """Escape text for HTML content or attributes. Control and direction characters are shown as their code points."""
    lines = value.replace("\r\n", "\n")
    return html.escape(_CONTROLS.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", lines))


def without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return public(value) if isinstance(value, str) else value


def without_folders(text: str) -> str:
    """Shorten the absolute paths in a text to their last part: where a person keeps files is not for others to see."""
    if text.startswith("/"):  # all of it may be one path: folders' names may have spaces
        return f"…/{text.rstrip('/').rpartition('/')[2]}"
    return _FOLDERS.sub("…/", text)


def presentable(value: Any) -> Any:
    """Return a JSON value without secrets and without absolute paths."""
    if isinstance(value, Mapping):
        return {key: presentable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [presentable(item) for item in value]
    return without_folders(public(value)) if isinstance(value, str) else value


def mapping_of(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def clipped(value: Any) -> str:
    shown = presentable(value)
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"


def step_text(value: Any) -> str:
    return f"{value:,}" if type(value) is int and abs(value) < LARGEST else "?"


def device_text(device: Mapping[str, Any]) -> str:
    forms = {
        "multiprocessors": "{} multiprocessors",
        "cuda": "CUDA {}",
        "threads": "threads: {}",
        "driver": "driver {}",
    }
    names = [name for name in ("name", "machine", "instructions", "threads", *device) if name in device]
    words = [
        size_text(device[name]) if name == "memory_bytes" else forms.get(name, "{}").format(clipped(device[name]))
        for name in dict.fromkeys(names)
        if name not in ("type", "capability", "features")
    ]
    return ", ".join(words) or "unknown"


def size_text(count: Any) -> str:
    if type(count) is not int:
        return "?"
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"

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


def mapping_of(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def clipped(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(without_secrets(value), ensure_ascii=False)
    return public(text) if len(text) <= 200 else f"{public(text)[:200]}…"


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
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"

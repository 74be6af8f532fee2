"""The report's sections on the published files and the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from engine.core.messages import plural
from engine.results.report.text import as_html, clipped, presentable, size_text

_FENCE: Final = re.compile(r"^(`{3,})[a-z]*\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)
_CODE: Final = re.compile(r"`([^`]+)`|\*([^*]+)\*")


@dataclass(frozen=True, slots=True)
class Published:
    """A file of the result's folder `checkpoint/`."""

    name: str
    num_bytes: int
    kind: Literal["weights", "earlier", "state"]
    """`weights`: to use; `earlier`: the weights of an earlier step; `state`: for the next task, and the rest."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of the task with its value."""

    name: str
    value: Any
    is_default: bool
    effect: Any = None
    """The value that is used, where it is another; None if it is the same or not known."""


def files(published: Sequence[Published], usage: str) -> str:
    """Return the section on the files and their use; empty without a result. `usage` is the model card's Markdown."""
    if not published:
        return ""
    weights = [file for file in published if file.kind == "weights"]
    rows = [(f"<code>{as_html(file.name)}</code>", file.num_bytes, "") for file in weights]
    rows += _together(published, "earlier", "weights of earlier steps, in <code>steps/</code>")
    rows += _together(published, "state", "to continue and to check the training")
    body = "".join(
        f"<tr><td>{name}{f' <small>{what}</small>' if what else ''}</td><td>{size_text(count)}</td></tr>"
        for name, count, what in rows
    )
    return f"""<section><h2>Files</h2><p class="note">In <code>checkpoint/</code>, with more in its README.md.</p>
<div class="card"><table class="files"><tbody>{body}</tbody></table></div>
<div class="card use">{_as_html(usage)}</div></section>"""


def _together(published: Sequence[Published], kind: str, what: str) -> list[tuple[str, int, str]]:
    found = [file.num_bytes for file in published if file.kind == kind]
    return [(plural(len(found), "file"), sum(found), what)] if found else []


def _as_html(markdown: str) -> str:
    """Return what methods write into the model card as HTML: headings, paragraphs, fenced blocks, code, emphasis."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_paragraphs(markdown[end : fence.start()]), f'<pre tabindex="0">{as_html(fence[2])}</pre>']
        end = fence.end()
    return "\n".join([*parts, _paragraphs(markdown[end:])])


def _paragraphs(text: str) -> str:
    blocks = [block.strip() for block in text.split("\n\n") if block.strip()]
    return "\n".join(
        f"<h3>{_inline(block.lstrip('# '))}</h3>" if block.startswith("#") else f"<p>{_inline(block)}</p>"
        for block in blocks
    )


def _inline(text: str) -> str:
    return _CODE.sub(lambda found: f"<code>{found[1]}</code>" if found[1] else f"<em>{found[2]}</em>", as_html(text))


def settings(task: Mapping[str, Any], every: Sequence[Setting]) -> str:
    """Return the section on the task, and all settings in a table that opens."""
    text = json.dumps(presentable(task), indent=2, ensure_ascii=False)
    rows = "".join(
        f"<tr><td><code>{as_html(row.name)}</code></td>"
        f"<td>{as_html(_value(row))}</td><td>{'default' if row.is_default else ''}</td></tr>"
        for row in every
    )
    table = f"""
<details class="card long"><summary>All {len(every):,} settings, with the defaults</summary>
<table class="settings"><thead><tr><th scope="col">Key</th><th scope="col">Value</th><th></th></tr></thead>
<tbody>{rows}</tbody></table></details>"""
    return f"""<section><h2>The task</h2><div class="card long"><pre>{as_html(text)}</pre></div>\
{table if every else ""}</section>"""


def _value(row: Setting) -> str:
    text = clipped(row.value)
    return text if row.effect is None else f"{text}: here {clipped(row.effect)}"

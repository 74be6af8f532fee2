"""How many inputs were tried, and what became of them, at the end of each test run."""

from __future__ import annotations

from tests.fuzz.tally import TRIED


def pytest_terminal_summary(terminalreporter) -> None:
    for target in sorted({target for target, _ in TRIED}):
        endings = {ending: count for (name, ending), count in sorted(TRIED.items()) if name == target}
        listing = ", ".join(f"{count:,} {ending}" for ending, count in endings.items())
        terminalreporter.write_line(f"fuzzed {target}: {sum(endings.values()):,} inputs ({listing})")

"""Describe this build and this machine, for the log and `result.json`, never for the two result folders. No torch."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engine import __version__
from engine.results import provenance

_ROOT: Final = Path(__file__).resolve().parents[2]
_CARDS: Final = Path("/proc/driver/nvidia/gpus")
_COMMIT: Final = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def name() -> str:
    """Return this machine's name; in Kubernetes it is the pod's."""
    return platform.node()


def revision() -> str | None:
    """Return the commit that this program was built from: the image's variable, else that of a clone; None: unknown."""
    return os.environ.get("SD_LORA_TASK_REVISION") or _checked_out(_ROOT / ".git")


def _checked_out(git: Path) -> str | None:
    """Return the commit of a clone, read from its files (gitrepository-layout(5)): a job does not run git."""
    with contextlib.suppress(OSError, UnicodeError):
        if git.is_file():  # a worktree's file, which contains the path of its folder
            git = git.parent / git.read_text().removeprefix("gitdir:").strip()
        found = (git / "HEAD").read_text().strip()
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        if found.startswith("ref: "):
            name = found.removeprefix("ref: ")
            found = (common / name).read_text() if (common / name).exists() else _packed(common, name)
        found = found.strip()
        return found if _COMMIT.fullmatch(found) else None
    return None


def _packed(common: Path, name: str) -> str:
    lines = (line.split(" ") for line in (common / "packed-refs").read_text().splitlines())
    return next((line[0] for line in lines if line[1:] == [name]), "")


def expected_device(device: str) -> dict[str, Any]:
    """Return what is known of a device before torch has opened it, in the form of `provenance.describe_device`."""
    if device != "cuda":
        return {"type": device, "machine": platform.machine()}
    models = {model for path in _CARDS.glob("*/information") if (model := _model(path))}
    # With several models it is not known yet which one the job will use.
    named = {"name": models.pop()} if len(models) == 1 else {}
    return {"type": device, **named, "driver": provenance.driver_version()}


def _model(information: Path) -> str | None:
    with contextlib.suppress(OSError):
        for line in information.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                return value.strip()
    return None


def introduction(
    revision: str | None, device: Mapping[str, Any] | None, task_digest: str | None
) -> tuple[str, dict[str, Any]]:
    """Return the log's first line, with version, device and task as far as they are known, and the same as facts."""
    build = f"sd-lora-task {__version__}" + (f" ({revision[:12]})" if revision else "")
    where = f" on {_device_words(device)}" if device else ""
    what = f", task sha256:{task_digest}" if task_digest else ""
    driver = device.get("driver") if device else None
    facts = {"version": __version__, "revision": revision, "device": device, "driver": driver, "host": name()}
    return build + where + what, facts | {"task_digest": task_digest}


def _device_words(device: Mapping[str, Any]) -> str:
    if device.get("type") == "cuda":
        driver = f", driver {device['driver']}" if device.get("driver") else ""
        return f"{device.get('name') or 'a GPU'}{driver}"
    named = [str(device[key]) for key in ("model", "machine", "instructions") if device.get(key)]
    return f"the CPU ({', '.join(named)})" if named else "the CPU"

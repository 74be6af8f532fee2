"""Read a base model's JSON files, which are untrusted. No torch."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Final

from engine.core.errors import ModelError

CONFIG: Final = "config.json"
"""The name of the configuration of a component with weights."""
SCHEDULER_FILE: Final = "scheduler_config.json"
"""The name of the configuration in a base model's scheduler/."""
_MAX_JSON_BYTES: Final = 64 << 20


def refuse_large(path: Path) -> None:
    """Raise ModelError for a file too large for a configuration, a device or a pipe, OSError if there is none."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"the base model's {path} is not a file; download it again")
    if found.st_size > _MAX_JSON_BYTES:
        raise ModelError(f"the base model's {path} is too large for a configuration; download it again")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ModelError: missing, too large or malformed.
    """
    try:
        refuse_large(path)
        value = json.loads(path.read_bytes())
    except OSError:
        raise ModelError(
            f"the base model has no {path.parent.name}/{path.name}; expected a folder in Diffusers' layout"
        ) from None
    except (ValueError, RecursionError):
        raise ModelError(f"the base model's {path} is not JSON; download it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"the base model's {path} is not a JSON object; download it again")
    return value

"""The place of a base model's component: a folder, a file of the whole model, or a file of its own. No torch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models.components.files import WEIGHT_STEMS, is_weight
from engine.models.configs import read_json
from engine.models.single_file import SingleFile


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One safetensors file with a component's weights under the names of Diffusers or transformers."""

    path: Path
    config: Mapping[str, Any]
    """The component's config.json, which such a file does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a component: a folder or a file."""

    component: str
    folder: Path
    """Its folder in Diffusers' layout, unless it lies in a file."""
    single_file: SingleFile | None = None
    """The file in which it has the original names; None if it lies elsewhere."""
    weight_file: WeightFile | None = None
    """The file that holds just this component; None if it lies elsewhere."""

    def config(self, name: str = "config.json") -> dict[str, Any]:
        """Return one of the component's JSON files. Raises ModelError."""
        if self.single_file is not None:
            return dict(self.single_file.configs[self.component])
        if self.weight_file is not None:
            return dict(self.weight_file.config)
        return read_json(self.folder / name)

    def weight_paths(self, variant: str | None) -> list[Path]:
        """Return the files with weights under the names of Diffusers or transformers, sorted; none in a single file."""
        if self.single_file is not None:
            return []
        if self.weight_file is not None:
            return [self.weight_file.path]
        return [path for path in sorted(self.folder.glob("*.safetensors")) if is_weight(path.name, variant)]

    @contextmanager
    def as_folder(self) -> Iterator[Path]:
        """Return a context with a folder from which the libraries' `from_pretrained` loads the component."""
        if self.weight_file is None:
            yield self.folder
            return
        with tempfile.TemporaryDirectory() as name:
            made = Path(name)
            (made / "config.json").write_text(json.dumps(self.weight_file.config))
            for stem in WEIGHT_STEMS:  # each library looks for one of them
                (made / f"{stem}.safetensors").symlink_to(self.weight_file.path)
            yield made

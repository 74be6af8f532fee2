"""Load a base model's modules when they are first needed, and free them."""

from __future__ import annotations

from collections.abc import Callable

import torch


class LazyParts(dict[str, torch.nn.Module]):
    """Modules by component. Like a `defaultdict`, it loads a component that is asked for, and has those in memory.

    A component that is removed is freed, unless something else refers to it, and loaded again when asked for.
    """

    def __init__(self, load: Callable[[str], torch.nn.Module]) -> None:
        """
        Args:
            load: loads a component. Raises ModelError.
        """
        super().__init__()
        self._load = load

    def __missing__(self, component: str) -> torch.nn.Module:
        self[component] = self._load(component)
        return self[component]

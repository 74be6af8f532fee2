"""A record of the memory that training a LoKr takes. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.models.parts.tape import AdapterTape
from engine.training.methods.lokr.split import Split, split


@dataclass(kw_only=True)
class LokrTape(AdapterTape):
    """The counts of a frozen model whose layers have Kronecker factors; see `layer.change`."""

    factor: int | None

    def conv(self, name: str, inputs: int, outputs: int, rows: int, *, size: int = 3, is_kept: bool = False) -> None:
        """See `Tape.conv`."""
        if self.is_adapted(name):
            found = self._split(name, (outputs, inputs, size, size))
            self.keep(inputs * rows, (self.width if self.width < 4 or self.is_dropping else 0) + self.is_dropping)
            self._factors(found, rows)
        super(AdapterTape, self).conv(name, inputs, outputs, rows, size=size, is_kept=is_kept)

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        rows: int,
        *,
        input_width: int,
        is_kept: bool = False,
        bias: bool = True,
    ) -> bool:
        """See `Tape.linear`: an input of another width is cast, and the copy kept."""
        super(AdapterTape, self).linear(
            name, inputs, outputs, rows, input_width=input_width, is_kept=is_kept, bias=bias
        )
        if not self.is_adapted(name):
            return False
        found = self._split(name, (outputs, inputs))
        is_shared = input_width == self.width and not self.is_dropping
        self.keep(inputs * rows, 0 if is_kept and is_shared else self.width + self.is_dropping)
        self._factors(found, rows)
        return is_shared

    def _split(self, name: str, shape: tuple[int, ...]) -> Split:
        """Record a layer's factors."""
        self.is_traced = True
        found = split(name, shape, self.rank, self.factor)
        for rows, *rest in found.shapes.values():
            self.trained += rows * math.prod(rest)
            self.trained_shapes[rows, math.prod(rest)] += 1
        return found

    def _factors(self, found: Split, rows: int) -> None:
        """Record what lies between the factors in the forward pass."""
        columns = found.left[1] * rows
        if found.rank is not None:
            self.keep(found.rank * columns, self.width)
        self.keep(found.right[0] * columns, self.width)

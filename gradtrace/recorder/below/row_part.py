"""A use of some rows of a parameter, as attention uses a third of its joint projection for the queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradtrace.recorder.below.contribution import Contribution

__all__ = ["RowPart"]


@dataclass(frozen=True, eq=False)
class RowPart:
    """What `use` contributes, to the rows [first, last) of a parameter; the others get nothing."""

    use: Contribution
    first: int
    last: int

    @property
    def samples(self) -> int:
        """Those of `use`."""
        return self.use.samples

    @property
    def positions(self) -> int:
        """Those of `use`."""
        return self.use.positions

    def add_total(self, out: torch.Tensor) -> None:
        """Add to the rows."""
        self.use.add_total(out[self.first : self.last])

    def add_position_sumsq(self, out: torch.Tensor) -> None:
        """Add to the rows."""
        self.use.add_position_sumsq(out[self.first : self.last])

    def add_position_support(self, out: torch.Tensor) -> None:
        """Add to the rows."""
        self.use.add_position_support(out[self.first : self.last])

    def add_sample(self, sample: int, out: torch.Tensor) -> None:
        """Add to the rows."""
        self.use.add_sample(sample, out[self.first : self.last])

    def add_sample_moments(self, sumsq: torch.Tensor, support: torch.Tensor) -> None:
        """Add to the rows."""
        self.use.add_sample_moments(sumsq[self.first : self.last], support[self.first : self.last])

"""Biases and the scales of norms: position n contributes a vector, no product of outputs and inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradtrace.recorder.below.contribution import marks, working

__all__ = ["Elementwise"]


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A use of a parameter of shape F to which each position contributes c_n = d_n * factor_n, elementwise.

    Attributes:
        d: gradient in the output, (S, P, *F).
        factor: what the parameter is multiplied by, (S, P, *F); None for a bias, whose factor is 1.
    """

    d: torch.Tensor
    factor: torch.Tensor | None = None

    @property
    def samples(self) -> int:
        """S."""
        return self.d.shape[0]

    @property
    def positions(self) -> int:
        """S * P."""
        return self.d.shape[0] * self.d.shape[1]

    def add_total(self, out: torch.Tensor) -> None:
        """Add Sum_n c_n."""
        out.add_(self._each().flatten(0, 1).sum(0))

    def add_position_sumsq(self, out: torch.Tensor) -> None:
        """Add Sum_n c_n^2."""
        out.add_(self._each().flatten(0, 1).square().sum(0))

    def add_position_support(self, out: torch.Tensor) -> None:
        """Add Sum_n [d_n != 0][factor_n != 0]."""
        some = marks(self.d)
        if self.factor is not None:
            some = some * marks(self.factor)
        out.add_(some.flatten(0, 1).sum(0))

    def add_sample(self, sample: int, out: torch.Tensor) -> None:
        """Add the sum of c_n over one sample's positions."""
        factor = 1.0 if self.factor is None else working(self.factor[sample])
        out.add_((working(self.d[sample]) * factor).sum(0))

    def add_sample_moments(self, sumsq: torch.Tensor, support: torch.Tensor) -> None:
        """Add Sum_s C_s^2 and Sum_s [C_s != 0]; the temporary (S, *F) is no larger than the output."""
        each = self._each().sum(1)
        sumsq.add_(each.square().sum(0))
        support.add_((each != 0).sum(0))

    def _each(self) -> torch.Tensor:
        d = working(self.d)
        return d if self.factor is None else d * working(self.factor)

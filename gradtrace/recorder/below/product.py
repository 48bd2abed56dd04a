"""Weights that multiply inputs: position n contributes d_n[i] * x_n[j] to the gradient of w[i, j]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from gradtrace.recorder.below.contribution import add_sample_moments, marks, working

__all__ = ["Product"]


@dataclass(frozen=True, eq=False)
class Product:
    """A linear use of a weight (O, I), or (I, O) with `inputs_first`.

    Sum_n (d_n[i] x_n[j])^2 = (d*d)^T (x*x), and the positions that support it are [d != 0]^T [x != 0]: one
    more matrix product each, as large as the one of the gradient, d^T x.

    Attributes:
        d: gradient in the output, (S, P, O): S samples of P positions.
        x: input, (S, P, I).
        inputs_first: the weight lies (I, O), as the Conv1D of GPT-2 keeps it.
    """

    d: torch.Tensor
    x: torch.Tensor
    inputs_first: bool = False

    @property
    def samples(self) -> int:
        """S."""
        return self.d.shape[0]

    @property
    def positions(self) -> int:
        """S * P."""
        return self.d.shape[0] * self.d.shape[1]

    @property
    def inputs(self) -> int:
        """I."""
        return self.x.shape[2]

    @property
    def gram_groups(self) -> int:
        """One: every output sees all inputs."""
        return 1

    def add_total(self, out: torch.Tensor) -> None:
        """Add d^T x."""
        self._multiply(working(self.d), working(self.x), out)

    def add_position_sumsq(self, out: torch.Tensor) -> None:
        """Add (d*d)^T (x*x)."""
        self._multiply(working(self.d).square(), self._squares, out)

    def add_position_support(self, out: torch.Tensor) -> None:
        """Add [d != 0]^T [x != 0]; where one of them holds no zero, a count along the other says the same."""
        some_d, some_x = marks(self.d), marks(self.x)
        # On a GPU the look for a zero would make the host wait.
        if out.device.type == "cpu":
            of_d, of_x = some_d.flatten(0, 1).sum(0), some_x.flatten(0, 1).sum(0)
            if bool((of_d == self.positions).all()):
                out.add_(of_x[:, None] if self.inputs_first else of_x)
                return
            if bool((of_x == self.positions).all()):
                out.add_(of_d if self.inputs_first else of_d[:, None])
                return
        self._multiply(some_d, some_x, out)

    def add_sample(self, sample: int, out: torch.Tensor) -> None:
        """Add d_s^T x_s, over the positions of one sample."""
        one = slice(sample, sample + 1)
        self._multiply(working(self.d[one]), working(self.x[one]), out)

    def add_sample_moments(self, sumsq: torch.Tensor, support: torch.Tensor) -> None:
        """Add Sum_s (d_s^T x_s)^2 and the samples in which it is not zero, one sample at a time."""
        if self.d.shape[1] == 1:
            self.add_position_sumsq(sumsq)
            self.add_position_support(support)
        else:
            add_sample_moments([self], sumsq, support, torch.empty_like(sumsq))

    def add_input_sum(self, out: torch.Tensor) -> None:
        """Add Sum_n x_n to `out` (I,)."""
        out.add_(working(self.x).flatten(0, 1).sum(0))

    def add_input_sumsq(self, out: torch.Tensor) -> None:
        """Add Sum_n x_n^2 to `out` (I,)."""
        out.add_(self._squares.flatten(0, 1).sum(0))

    def add_input_gram(self, out: torch.Tensor) -> None:
        """Add x^T x to `out` (1, I, I)."""
        flat = working(self.x).flatten(0, 1)
        out[0].addmm_(flat.T, flat)

    @cached_property
    def _squares(self) -> torch.Tensor:
        return working(self.x).square()

    def _multiply(self, d: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
        d, x = d.flatten(0, 1), x.flatten(0, 1)
        if self.inputs_first:
            out.addmm_(x.T, d)
        else:
            out.addmm_(d.T, x)

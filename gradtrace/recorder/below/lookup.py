"""Embeddings: position n contributes d_n to the row that it looked up, and nothing to any other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradtrace.errors import UnsupportedError
from gradtrace.recorder.below.contribution import marks, working

__all__ = ["Lookup"]


@dataclass(frozen=True, eq=False)
class Lookup:
    """A use of an embedding (V, E).

    Attributes:
        rows: the row of each position, integers (S, P).
        d: gradient in the output, (S, P, E), zero at positions that do not train their row (padding).
        number: V.
    """

    rows: torch.Tensor
    d: torch.Tensor
    number: int

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
        """V: an embedding multiplies by the one-hot code of its row."""
        return self.number

    @property
    def gram_groups(self) -> int:
        """None is offered: the Gram matrix of one-hot inputs is diagonal, and `add_input_sumsq` has that."""
        return 0

    def add_total(self, out: torch.Tensor) -> None:
        """Add, to each row, the sum of d_n over its positions."""
        self._scatter(working(self.d), out)

    def add_position_sumsq(self, out: torch.Tensor) -> None:
        """Add, to each row, the sum of d_n^2 over its positions."""
        self._scatter(working(self.d).square(), out)

    def add_position_support(self, out: torch.Tensor) -> None:
        """Add, to each row, the number of its positions with d_n != 0."""
        self._scatter(marks(self.d), out)

    def add_sample(self, sample: int, out: torch.Tensor) -> None:
        """Add, to each row, the sum of d_n over its positions in one sample."""
        out.index_add_(0, self.rows[sample], working(self.d[sample]))

    def add_sample_moments(self, sumsq: torch.Tensor, support: torch.Tensor) -> None:
        """Add Sum_s C_s^2 and Sum_s [C_s != 0], by the rows that occur in a sample: (at most S * P, E)."""
        sample = torch.arange(self.samples, device=self.rows.device)[:, None]
        pairs, of_pair = torch.unique(sample * self.number + self.rows, return_inverse=True)
        d = working(self.d).flatten(0, 1)
        sums = d.new_zeros((pairs.numel(), d.shape[1])).index_add_(0, of_pair.flatten(), d)
        rows = pairs % self.number
        sumsq.index_add_(0, rows, sums.square())
        support.index_add_(0, rows, (sums != 0).to(support.dtype))

    def add_input_sum(self, out: torch.Tensor) -> None:
        """Add to `out` (V,) how often each row was looked up."""
        out.add_(torch.bincount(self.rows.flatten(), minlength=self.number))

    def add_input_sumsq(self, out: torch.Tensor) -> None:
        """Add to `out` (V,) how often each row was looked up: the square of 1 is 1."""
        self.add_input_sum(out)

    def add_input_gram(self, out: torch.Tensor) -> None:
        """Raise an UnsupportedError: see `gram_groups`."""
        raise UnsupportedError(
            "Gram matrix of an embedding", expected="a layer with dense inputs", remedy="use its input_sumsq"
        )

    def _scatter(self, d: torch.Tensor, out: torch.Tensor) -> None:
        out.index_add_(0, self.rows.flatten(), d.flatten(0, 1))

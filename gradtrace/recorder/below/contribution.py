"""What the uses of one parameter contribute to its gradient: the sums that every kind of module offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

__all__ = ["Contribution", "InputMoments", "add_sample_moments", "marks", "working"]


class Contribution(Protocol):
    """One use of a parameter: a forward call, and the gradient d of the loss in its output.

    A *position* n is one place where the parameter is applied (a token, an output pixel); c_n, in the shape
    of the parameter, is what it adds to the gradient: Sum_n c_n = p.grad, as far as this use goes. A *sample*
    s is an index of the first axis; C_s is the sum of c_n over its positions. An array `out` is added to; it
    has the shape of the parameter, and is float64 where the inputs are, float32 for all else.

    Attributes:
        samples: number of samples, S.
        positions: number of positions, N, of all samples together.
    """

    @property
    def samples(self) -> int:
        """S."""

    @property
    def positions(self) -> int:
        """N."""

    def add_total(self, out: torch.Tensor) -> None:
        """Add Sum_n c_n."""

    def add_position_sumsq(self, out: torch.Tensor) -> None:
        """Add Sum_n c_n^2."""

    def add_position_support(self, out: torch.Tensor) -> None:
        """Add Sum_n [c_n != 0], told from the factors, so that no small product is lost to underflow."""

    def add_sample(self, sample: int, out: torch.Tensor) -> None:
        """Add C_s of one sample."""

    def add_sample_moments(self, sumsq: torch.Tensor, support: torch.Tensor) -> None:
        """Add Sum_s C_s^2 to one array and Sum_s [C_s != 0] to the other."""


@runtime_checkable
class InputMoments(Protocol):
    """Moments over positions of what a layer multiplies its weights by; J numbers a position, flat."""

    @property
    def inputs(self) -> int:
        """J."""

    @property
    def positions(self) -> int:
        """Number of positions, N."""

    @property
    def gram_groups(self) -> int:
        """G, the groups of inputs that share no output; 0 where no Gram matrix is offered."""

    def add_input_sum(self, out: torch.Tensor) -> None:
        """Add Sum_n x_n to `out` (J,)."""

    def add_input_sumsq(self, out: torch.Tensor) -> None:
        """Add Sum_n x_n^2 to `out` (J,)."""

    def add_input_gram(self, out: torch.Tensor) -> None:
        """Add Sum_n x_n x_n^T to `out` (G, J / G, J / G)."""


def add_sample_moments(
    uses: Sequence[Contribution], sumsq: torch.Tensor, support: torch.Tensor, work: torch.Tensor
) -> None:
    """Add Sum_s C_s^2 and Sum_s [C_s != 0], where C_s is summed over several uses of one parameter first.

    Args:
        uses: all of the same number of samples; the same index is the same sample.
        sumsq: the parameter's shape.
        support: the parameter's shape.
        work: overwritten; the parameter's shape. The only temporary, whatever the number of samples.
    """
    for sample in range(uses[0].samples):
        work.zero_()
        for use in uses:
            use.add_sample(sample, work)
        sumsq.addcmul_(work, work)
        support.add_(work != 0)


def working(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in the dtype that sums are taken in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def marks(tensor: torch.Tensor) -> torch.Tensor:
    """Return 1.0 where the tensor is not zero and 0.0 elsewhere, in the dtype that sums are taken in.

    On a CPU several times as fast as comparing and converting.
    """
    return working(tensor).sign().abs_()

"""Convolutions: a position is one output pixel of one sample, its inputs are the patch that it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from gradtrace.errors import UnsupportedError
from gradtrace.recorder.below.contribution import add_sample_moments, marks, working

__all__ = ["Convolution"]

_WEIGHT_GRADIENT: dict[int, Callable[..., torch.Tensor]] = {
    1: conv1d_weight,
    2: conv2d_weight,
    3: conv3d_weight,
}


@dataclass(frozen=True, eq=False)
class Convolution:
    """A use of a weight (O, I / G, *K) in one to three dimensions, with G groups.

    The gradient is a sum over output pixels of d_n[i] * x_n[j], where x_n is the patch that pixel n sees.
    Hence the gradient's own convolution, fed with squares, gives Sum_n (d_n[i] x_n[j])^2, and fed with marks
    it gives the support: no patch is ever unfolded. Padding with zeros supports nothing.

    Attributes:
        d: gradient in the output, (S, O, *L').
        x: input, (S, I, *L), already padded where the padding is not plain zeros.
        weight: shape of the weight.
        stride: step of the patch in each dimension.
        padding: zeros added on both sides of each dimension.
        dilation: distance within the patch in each dimension.
        groups: G.
    """

    d: torch.Tensor
    x: torch.Tensor
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def samples(self) -> int:
        """S."""
        return self.d.shape[0]

    @property
    def positions(self) -> int:
        """S times the output pixels of a sample."""
        return self.d.shape[0] * self.d[0, 0].numel()

    @property
    def inputs(self) -> int:
        """I times the pixels of a patch: those of group 0 first, each group in the order of the weight."""
        return self.groups * self._patch

    @property
    def gram_groups(self) -> int:
        """G; none is offered in three dimensions."""
        return self.groups if len(self.stride) < 3 else 0

    def add_total(self, out: torch.Tensor) -> None:
        """Add Sum_n d_n[i] x_n[j]."""
        out.add_(self._convolve(working(self.d), working(self.x), self.weight))

    def add_position_sumsq(self, out: torch.Tensor) -> None:
        """Add Sum_n (d_n[i] x_n[j])^2."""
        out.add_(self._convolve(working(self.d).square(), working(self.x).square(), self.weight))

    def add_position_support(self, out: torch.Tensor) -> None:
        """Add Sum_n [d_n[i] != 0][x_n[j] != 0]."""
        counts = self._convolve(marks(self.d), marks(self.x), self.weight)
        # Fast convolutions go through transforms, after which a count is only nearly whole.
        out.add_(counts.round_())

    def add_sample(self, sample: int, out: torch.Tensor) -> None:
        """Add Sum_n d_n[i] x_n[j] over the output pixels of one sample."""
        one = slice(sample, sample + 1)
        out.add_(self._convolve(working(self.d[one]), working(self.x[one]), self.weight))

    def add_sample_moments(self, sumsq: torch.Tensor, support: torch.Tensor) -> None:
        """Add Sum_s C_s^2 and Sum_s [C_s != 0], one sample at a time."""
        add_sample_moments([self], sumsq, support, torch.empty_like(sumsq))

    def add_input_sum(self, out: torch.Tensor) -> None:
        """Add Sum_n x_n to `out` (J,): the gradient of a filter whose output gradient is 1 everywhere."""
        out.add_(self._of_patches(working(self.x)))

    def add_input_sumsq(self, out: torch.Tensor) -> None:
        """Add Sum_n x_n^2 to `out` (J,)."""
        out.add_(self._of_patches(working(self.x).square()))

    def add_input_gram(self, out: torch.Tensor) -> None:
        """Add Sum_n x_n x_n^T to `out` (G, J / G, J / G); patches are unfolded for one sample at a time.

        Raises:
            UnsupportedError: the convolution has three dimensions.
        """
        if not self.gram_groups:
            raise UnsupportedError(
                "Gram matrix of a Conv3d", expected="a convolution of one or two dimensions"
            )
        for sample in range(self.samples):
            patches = self._unfold(working(self.x[sample : sample + 1])).reshape(self.groups, self._patch, -1)
            out.baddbmm_(patches, patches.mT)

    @property
    def _patch(self) -> int:
        return torch.Size(self.weight[1:]).numel()

    def _unfold(self, x: torch.Tensor) -> torch.Tensor:
        sides: dict[str, Any] = {
            "kernel_size": self.weight[2:],
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
        }
        if len(self.stride) == 1:
            x = x[..., None]
            fill = {"padding": 0}
            sides = {name: (side[0], fill.get(name, 1)) for name, side in sides.items()}
        return functional.unfold(x, **sides)[0]

    def _of_patches(self, x: torch.Tensor) -> torch.Tensor:
        ones = x.new_ones(()).expand(x.shape[0], self.groups, *self.d.shape[2:])
        return self._convolve(ones, x, (self.groups, *self.weight[1:])).reshape(-1)

    def _convolve(self, d: torch.Tensor, x: torch.Tensor, weight: tuple[int, ...]) -> torch.Tensor:
        return _WEIGHT_GRADIENT[len(self.stride)](
            x, weight, d, self.stride, self.padding, self.dilation, self.groups
        )

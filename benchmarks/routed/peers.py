"""What a user would run instead: torch's block-sparse and sparse products, bmm, grouped_mm, scipy."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import gcd

import torch
from routed.cases import Layer
from torch import Tensor
from torch.nn import functional

__all__ = ["peers_of"]

Timed = Callable[[], object]


def peers_of(layer: Layer) -> Callable[[Tensor], dict[str, Timed]]:
    """For an x (tokens, inputs) the calls to be timed, by name; conversions are done here, once."""
    bias = layer.dense.bias.detach()
    kept = torch.from_numpy(layer.mask)
    weight = layer.dense.weight.detach() * kept
    if not layer.case.in_grid:
        return lambda x: {}
    csr = weight.to_sparse_csr()
    plain = _scipy(weight)
    bsr = _fastest_bsr(layer, weight)
    blocks = None
    if layer.case.kind == "blocks":
        outputs, inputs = (side // layer.case.size for side in weight.shape)
        blocks = torch.stack(
            [weight[part.outputs[0] :, part.inputs[0] :][:outputs, :inputs] for part in layer.parts]
        )

    def calls(x: Tensor) -> dict[str, Timed]:
        array, offset = x.numpy(), bias.numpy()[:, None]
        found: dict[str, Timed] = {
            "torch BSR": lambda: functional.linear(x, bsr, bias),
            # Features first, as sparse products want it: functional.linear with CSR takes many times as long.
            "torch CSR": lambda: torch.addmm(bias[:, None], csr, x.t()),
            "scipy CSR": lambda: plain @ array.T + offset,
        }
        if blocks is not None:
            found["bmm"] = lambda: _bmm(x, blocks, bias)
            if not any(side % 4 for side in blocks.shape[1:]):  # what it asks for
                found["grouped_mm"] = lambda: _grouped(x, blocks, bias)
        return found

    return calls


def _bmm(x: Tensor, blocks: Tensor, bias: Tensor) -> Tensor:
    """Equal blocks as one batched product, brought into the order of a layer's output."""
    count, outputs, inputs = blocks.shape
    gathered = x.view(-1, count, inputs).transpose(0, 1)
    product = torch.baddbmm(bias.view(count, 1, outputs), gathered, blocks.transpose(1, 2))
    return product.transpose(0, 1).reshape(len(x), -1)


def _grouped(x: Tensor, blocks: Tensor, bias: Tensor) -> Tensor:
    """The same by the operator for experts, which takes no bias."""
    count, _, inputs = blocks.shape
    gathered = x.view(-1, count, inputs).transpose(0, 1).contiguous()
    product: Tensor = functional.grouped_mm(gathered, blocks.transpose(1, 2))
    return product.transpose(0, 1).reshape(len(x), -1) + bias


def _fastest_bsr(layer: Layer, weight: Tensor) -> Tensor:
    """Blocks are square on a CPU: the largest that cuts exact blocks, or 8; 1 where inputs are scattered."""
    sizes = {1}
    if layer.case.kind == "blocks":
        side = gcd(*(length // layer.case.size for length in weight.shape))
        sizes = {side, *({8} if side % 8 == 0 else ())}
    x = torch.randn(16, weight.shape[1])

    def seconds(matrix: Tensor) -> float:
        functional.linear(x, matrix)
        began = time.perf_counter()
        functional.linear(x, matrix)
        return time.perf_counter() - began

    return min((weight.to_sparse_bsr((size, size)) for size in sizes), key=seconds)


def _scipy(weight: Tensor) -> object:
    from scipy.sparse import csr_array

    return csr_array(weight.numpy())

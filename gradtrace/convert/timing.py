"""Measuring what layers cost on the device at hand: interleaved medians, never one run after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import median
from time import perf_counter

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional

from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.structure.cost import CostTable
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["cost_table", "measure_beside", "medians"]

_SIZES = (16, 64, 256, 1024, 4096)
_LONGEST = 0.25  # seconds of one product: beyond it, time grows in proportion and needs no measuring
_BUDGET = 1.0  # seconds for each of the two sweeps of a calibration
_CONFIRM_BUDGET = 0.3
_MOST_ROUNDS = 25
_LEAST_ROUNDS = 3


def medians(functions: Sequence[Callable[[], object]], device: torch.device, budget: float) -> list[float]:
    """Median seconds of each function, all called in turn, round after round, for about `budget` seconds.

    Whatever else the machine does falls on all of them alike. The first round warms up and is not counted.
    """
    taken: list[list[float]] = [[] for _ in functions]
    begun = perf_counter()
    for number in range(_MOST_ROUNDS + 1):
        for times, function in zip(taken, functions, strict=True):
            _wait(device)
            start = perf_counter()
            function()
            _wait(device)
            if number:
                times.append(perf_counter() - start)
        if number >= _LEAST_ROUNDS and perf_counter() - begun > budget:
            break
    return [median(times) for times in taken]


def cost_table(device: torch.device, dtype: torch.dtype, tokens: int) -> CostTable:
    """The costs of linear layers for `tokens` rows, measured once per process, device, dtype and threads.

    Takes two to three seconds on two slow cores at 512 tokens.
    """
    return _measured(device, dtype, tokens, torch.get_num_threads())


@torch.no_grad()
def measure_beside(linear: nn.Linear, routed: RoutedLinear, tokens: int) -> tuple[float, float]:
    """(seconds of `linear`, seconds of `routed`) on `tokens` rows of noise."""
    weight = linear.weight
    x = torch.randn(tokens, linear.in_features, device=weight.device, dtype=weight.dtype)
    dense, taken = medians(
        [lambda: functional.linear(x, weight, linear.bias), lambda: routed(x)], weight.device, _CONFIRM_BUDGET
    )
    return dense, taken


@lru_cache(maxsize=64)
@torch.no_grad()
def _measured(device: torch.device, dtype: torch.dtype, tokens: int, threads: int) -> CostTable:
    sizes = _affordable(device, dtype, tokens)
    numbers = torch.randn(sizes[-1] * max(sizes[-1], tokens), device=device, dtype=dtype)
    # From large to small, so that no small product follows one that has emptied the caches.
    pairs = [(k, n) for k in sizes[::-1] for n in sizes[::-1]]
    taken = medians([_product(numbers, tokens, k, n) for k, n in pairs], device, _BUDGET)
    seconds_of = dict(zip(pairs, taken, strict=True))
    gemm = tuple(tuple(seconds_of[k, n] for n in sizes) for k in sizes)
    bare = CostTable(tokens, sizes, sizes, gemm)
    side = min(sizes[-1], 1024)
    structures = _structures(side)
    x = numbers[: tokens * side].view(tokens, side)
    layers = [RoutedLinear(side, side, parts, device=device, dtype=dtype) for parts in structures]
    seconds = np.array(medians([_call(layer, x) for layer in layers], device, _BUDGET))
    # What the products do not explain is spread over the counts of calls, sub-operators and elements.
    unexplained = seconds - [bare.predict_sub_operators(parts, side) for parts in structures]
    counts = np.array(
        [
            [
                tokens * sum(len(part.inputs) for part in parts),
                tokens * sum(len(part.outputs) for part in parts),
                tokens * side,
                len(parts),
                1,
            ]
            for parts in structures
        ],
        dtype=np.float64,
    )
    # Relative errors count, and columns of like size keep the solver well conditioned.
    scale = counts.max(axis=0)
    costs, _ = nnls(counts / scale / seconds[:, None], unexplained / seconds)
    gather, scatter, fill, per_sub_operator, per_call = (float(cost) for cost in costs / scale)
    return CostTable(tokens, sizes, sizes, gemm, gather, scatter, fill, per_sub_operator, per_call)


def _affordable(device: torch.device, dtype: torch.dtype, tokens: int) -> tuple[int, ...]:
    kept = 1
    for kept, side in enumerate(_SIZES, 1):
        numbers = torch.randn(side * max(side, tokens), device=device, dtype=dtype)
        product = _product(numbers, tokens, side, side)
        product()
        _wait(device)
        start = perf_counter()
        product()
        _wait(device)
        if perf_counter() - start > _LONGEST:
            kept -= 1
            break
    return _SIZES[: max(kept, 2)]


def _product(numbers: Tensor, tokens: int, inputs: int, outputs: int) -> Callable[[], object]:
    x = numbers[: tokens * inputs].view(tokens, inputs)
    weight = numbers[: outputs * inputs].view(outputs, inputs)
    bias = numbers[:outputs]
    return lambda: functional.linear(x, weight, bias)


def _call(layer: RoutedLinear, x: Tensor) -> Callable[[], object]:
    return lambda: layer(x)


def _structures(side: int) -> list[tuple[SubOperator, ...]]:
    """Structures of a square layer whose pieces, reads, writes and dead outputs vary independently."""

    def spread(count: int, inputs: int, outputs: int) -> tuple[SubOperator, ...]:
        # Indices a stride apart, as a mask's are; outputs are disjoint.
        source = np.linspace(0, side - 1, inputs).astype(np.int64)
        return tuple(SubOperator(source, np.arange(outputs) * count + number) for number in range(count))

    quarter, half = side // 4, side // 2
    shapes = [(1, 16, 16), (1, side, quarter), (1, half, half), (1, half, side), (4, half, quarter)]
    shapes += [(4, 16, quarter), (4, quarter, 4), (16, 16, side // 16), (16, half, side // 16), (16, 16, 1)]
    return [(), *(spread(count, min(inputs, side), max(outputs, 1)) for count, inputs, outputs in shapes)]


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

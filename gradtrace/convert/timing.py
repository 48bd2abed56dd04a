"""Measuring what layers cost on the device at hand: interleaved calls, never one run after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import quantiles
from time import perf_counter

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional

from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.structure.cost import CostTable
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["cost_table", "measure_beside", "quartiles"]

_SIZES = (16, 64, 256, 1024, 4096)
_LONGEST = 0.1  # seconds of one product: beyond it, time grows in proportion and needs no measuring
_BUDGET = 1.0  # seconds for each of the two sweeps of a calibration
_CONFIRM_BUDGET = 0.6  # and for each layer that is measured beside its candidate
_MOST_ROUNDS = 25
_LEAST_ROUNDS = 8


def quartiles(functions: Sequence[Callable[[], object]], device: torch.device, budget: float) -> list[float]:
    """Lower quartile of each function's seconds, all called in turn for about `budget` seconds.

    Whatever else the machine does falls on all of them alike, and only ever adds time: with half of the calls
    disturbed, a lower quartile still tells what the call itself takes. The first round warms up.
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
    return [quantiles(times, n=4, method="inclusive")[0] for times in taken]


def cost_table(device: torch.device, dtype: torch.dtype, tokens: int) -> CostTable:
    """The costs of linear layers for `tokens` rows, measured once per process, device, dtype and threads.

    Takes about three seconds at 512 tokens.
    """
    return _measured(device, dtype, tokens, torch.get_num_threads())


@torch.no_grad()
def measure_beside(linear: nn.Linear, routed: RoutedLinear, tokens: int) -> tuple[float, float]:
    """(seconds of `linear`, seconds of `routed`) on `tokens` rows of noise."""
    weight = linear.weight
    x = torch.randn(tokens, linear.in_features, device=weight.device, dtype=weight.dtype)
    dense, taken = quartiles(
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
    taken = quartiles([_product(numbers, tokens, k, n) for k, n in pairs], device, _BUDGET)
    seconds_of = dict(zip(pairs, taken, strict=True))
    gemm = tuple(tuple(seconds_of[k, n] for n in sizes) for k in sizes)
    bare = CostTable(tokens, sizes, sizes, gemm)
    structures = _structures(min(sizes[-1], 1024))
    calls = [_call(side, parts, numbers, tokens) for side, parts in structures]
    seconds = np.array(quartiles(calls, device, _BUDGET))
    # What the products do not explain is spread over the counts of elements, sub-operators and calls.
    products = np.array([bare.predict_sub_operators(parts, side) for side, parts in structures])
    counts = np.array([_counts(side, parts, tokens) for side, parts in structures], dtype=np.float64)
    # Relative errors count, and columns of like size keep the solver well conditioned.
    scale = counts.max(axis=0)
    costs, _ = nnls(counts / scale / seconds[:, None], (seconds - products) / seconds)
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


def _call(side: int, parts: tuple[SubOperator, ...], numbers: Tensor, tokens: int) -> Callable[[], object]:
    layer = RoutedLinear(side, side, parts, device=numbers.device, dtype=numbers.dtype)
    x = numbers[: tokens * side].view(tokens, side)
    return lambda: layer(x)


def _counts(side: int, parts: tuple[SubOperator, ...], tokens: int) -> list[int]:
    """How many elements are gathered, scattered and filled, how many sub-operators run, and the one call."""
    gathered, scattered = sum(len(part.inputs) for part in parts), sum(len(part.outputs) for part in parts)
    return [tokens * gathered, tokens * scattered, tokens * side, len(parts), 1]


def _structures(side: int) -> list[tuple[int, tuple[SubOperator, ...]]]:
    """Square layers (side, sub-operators) whose counts of everything that costs vary independently."""

    def spread(count: int, inputs: int, outputs: int) -> tuple[SubOperator, ...]:
        # Indices a stride apart, as a mask's are; outputs are disjoint.
        source = np.linspace(0, side - 1, inputs).astype(np.int64)
        return tuple(SubOperator(source, np.arange(outputs) * count + number) for number in range(count))

    quarter, half, slim = side // 4, side // 2, max(side // 64, 1)
    shapes = [(1, slim, slim), (1, side, quarter), (1, half, half), (1, half, side), (4, half, quarter)]
    shapes += [
        (4, slim, quarter),
        (4, quarter, slim),
        (slim, slim, slim),
        (16, half, side // 16),
        (16, slim, 1),
    ]
    large = [(side, spread(*shape)) for shape in shapes if shape[0] * shape[2] <= side]
    small = (quarter, (SubOperator(np.arange(quarter // 2) * 2, np.arange(quarter)),))
    return [(side, ()), (quarter, ()), small, *large]


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

"""Measuring what layers cost on the device at hand: interleaved calls, never one run after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import inf
from statistics import quantiles
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrace.convert.fitting import Structure, fitted, structures_of, weights_of, wide_structures
from gradtrace.convert.kept_costs import Costs, cost_key, kept_costs
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.kernels.routed_linear_cpu import compiled_products
from gradtrace.structure.cost import CostTable

__all__ = ["cost_table", "costs", "measure_beside", "quartiles"]

_SIZES = (16, 64, 256, 1024, 4096)
_LONGEST = 0.1  # seconds of one product: beyond it, time grows in proportion and needs no measuring
_BUDGET = 1.0  # seconds for each of the two sweeps of a calibration
_CONFIRM_BUDGET = 0.6  # and for each layer that is measured beside its candidate
_SHORT = 0.005  # seconds of a call that is made twice in every turn
_MOST_ROUNDS = 25
_LEAST_ROUNDS = 8


def quartiles(functions: Sequence[Callable[[], object]], device: torch.device, budget: float) -> list[float]:
    """Lower quartile of each function's seconds, all called in turn for about `budget` seconds.

    Whatever else the machine does falls on all of them alike, and only ever adds time: with half of the calls
    disturbed, a lower quartile still tells what the call itself takes. The first round warms up; where a call
    is short, so does one before each that counts: what the caches hold of it is not left to chance.
    """
    taken: list[list[float]] = [[] for _ in functions]
    last = [inf] * len(functions)
    begun = perf_counter()
    for number in range(_MOST_ROUNDS + 1):
        for place, function in enumerate(functions):
            if last[place] < _SHORT:
                function()
            _wait(device)
            start = perf_counter()
            function()
            _wait(device)
            last[place] = perf_counter() - start
            if number:
                taken[place].append(last[place])
        if number >= _LEAST_ROUNDS and perf_counter() - begun > budget:
            break
    return [quantiles(times, n=4, method="inclusive")[0] for times in taken]


def cost_table(device: torch.device, dtype: torch.dtype, tokens: int) -> CostTable:
    """The costs of linear layers for `tokens` rows, measured once per device, dtype and number of threads.

    Takes about three seconds at 512 tokens, and is kept in the user's cache folder.
    """
    return costs(device, dtype, tokens).table


def costs(device: torch.device, dtype: torch.dtype, tokens: int) -> Costs:
    """`cost_table`, with when it was measured, and where it is kept."""
    return _costs(device, dtype, tokens, torch.get_num_threads())


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
def _costs(device: torch.device, dtype: torch.dtype, tokens: int, threads: int) -> Costs:
    compiled = device.type == "cpu" and dtype == torch.float32 and compiled_products() is not None
    key = cost_key(device, dtype, tokens, threads, compiled=compiled)
    return kept_costs(key, lambda: _measured(device, dtype, tokens, rated=compiled))


@torch.no_grad()
def _measured(device: torch.device, dtype: torch.dtype, tokens: int, *, rated: bool) -> CostTable:
    sizes = _affordable(device, dtype, tokens)
    numbers = torch.randn(sizes[-1] * max(sizes[-1], tokens), device=device, dtype=dtype)
    # From large to small, so that no small product follows one that has emptied the caches.
    pairs = [(k, n) for k in sizes[::-1] for n in sizes[::-1]]
    taken = quartiles([_product(numbers, tokens, k, n) for k, n in pairs], device, _BUDGET)
    seconds_of = dict(zip(pairs, taken, strict=True))
    gemm = tuple(tuple(seconds_of[k, n] for n in sizes) for k in sizes)
    bare = CostTable(tokens, sizes, sizes, gemm)
    structures = structures_of(min(sizes[-1], 1024))
    weights: tuple[int, ...] = ()
    if rated:
        weights = weights_of(tokens)
        structures += wide_structures(weights)
    calls = [_call(structure, device, dtype, tokens) for structure in structures]
    return fitted(bare, structures, quartiles(calls, device, _BUDGET), weights)


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


def _call(
    structure: Structure, device: torch.device, dtype: torch.dtype, tokens: int
) -> Callable[[], object]:
    inputs, outputs, parts = structure
    layer = RoutedLinear(inputs, outputs, parts, device=device, dtype=dtype)
    x = torch.randn(tokens, inputs, device=device, dtype=dtype)
    return lambda: layer(x)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

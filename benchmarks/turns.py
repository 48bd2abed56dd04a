"""Timing calls in turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import inf
from statistics import median, quantiles

__all__ = ["Rounds", "Timed", "in_turns", "ratios", "spread"]

SHORT = 0.005  # seconds of a call that is made twice in every turn
SLOW = 0.25  # seconds of a call from which two must do
MOST = 151  # rounds
Timed = Callable[[], object]
Rounds = dict[str, dict[int, float]]


def in_turns(functions: Mapping[str, Timed], seconds: float, wait: Timed | None = None) -> Rounds:
    """Seconds of each call by name and round; the first round warms up, and counts for what is slow.

    `wait` waits for the device, before and after each call.
    """
    wait = wait or (lambda: None)
    taken: Rounds = {name: {} for name in functions}
    names, began = list(functions), time.perf_counter()
    spent_last = dict.fromkeys(names, inf)
    for number in range(MOST + 1):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            times = taken[name]
            if sum(times.values()) > 2 * seconds / len(names) + SLOW and len(times) > 1:
                continue
            if spent_last[name] < SHORT:
                functions[name]()
            wait()
            start = time.perf_counter()
            functions[name]()
            wait()
            spent = spent_last[name] = time.perf_counter() - start
            if number or spent > SLOW:
                times[number] = spent
        if number >= 5 and time.perf_counter() - began > seconds:
            break
    return taken


def spread(times: Mapping[int, float]) -> dict[str, float]:
    values = list(times.values())
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high, "calls": len(values)}


def ratios(others: Mapping[int, float], own: Mapping[int, float]) -> list[float]:
    """How many times as long the others took, round by round; over all where they met in no round."""
    shared = [others[number] / own[number] for number in others.keys() & own.keys()]
    return shared or [median(others.values()) / median(own.values())]

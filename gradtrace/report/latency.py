"""How long models take, measured in turns so that the machine's moods fall on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

__all__ = ["Latency", "interleaved"]


@dataclass(frozen=True)
class Latency:
    """Seconds a call: the median and the quartiles either side of it."""

    median: float
    low: float
    high: float


def interleaved(
    models: Mapping[str, Callable[[Tensor], Tensor]], batch: Tensor, *, rounds: int = 100
) -> dict[str, Latency]:
    """Time every model on `batch`, one call each a round, in an order that rotates from round to round.

    The first tenth of the rounds warms up and is not counted. Runs under `torch.inference_mode()`; on CUDA
    every call is waited for.
    """
    names = list(models)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    warm = max(1, rounds // 10)
    with torch.inference_mode():
        for turn in range(warm + rounds):
            for position in range(len(names)):
                name = names[(turn + position) % len(names)]
                began = perf_counter()
                models[name](batch)
                if batch.is_cuda:
                    torch.cuda.synchronize(batch.device)
                if turn >= warm:
                    seconds[name].append(perf_counter() - began)
    quartiles = {name: np.quantile(times, (0.5, 0.25, 0.75)) for name, times in seconds.items()}
    return {name: Latency(*(float(q) for q in quartiles[name])) for name in names}

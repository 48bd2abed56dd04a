from __future__ import annotations

from time import sleep

import torch
from torch import Tensor

from gradtrace.report.latency import interleaved


def test_every_model_is_called_once_a_round_in_rotating_order() -> None:
    calls: list[str] = []

    def model(name: str) -> object:
        def call(x: Tensor) -> Tensor:
            calls.append(name)
            return x

        return call

    interleaved({"a": model("a"), "b": model("b")}, torch.zeros(1), rounds=3)  # type: ignore[dict-item]
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]  # the first of the four rounds warms up


def test_the_slower_model_has_the_larger_median() -> None:
    def slow(x: Tensor) -> Tensor:
        sleep(0.01)
        return x

    found = interleaved({"slow": slow, "quick": lambda x: x}, torch.zeros(1), rounds=5)
    assert found["slow"].low >= 0.01
    assert found["quick"].high < found["slow"].median
    assert found["slow"].low <= found["slow"].median <= found["slow"].high

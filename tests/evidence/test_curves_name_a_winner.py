from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import MismatchError
from gradtrace.evidence.curves import Curves, quality_at_density
from gradtrace.evidence.mask import Mask


def test_quality_is_asked_of_each_mask_at_its_density() -> None:
    scores = {"up": {"w": np.arange(20.0).reshape(4, 5)}, "down": {"w": -np.arange(20.0).reshape(4, 5)}}

    def evaluate(mask: Mask) -> float:
        return float(np.arange(20.0).reshape(4, 5)[mask["w"]].sum())

    curves = quality_at_density(scores, evaluate, (1.0, 0.25))
    assert curves.values == {"up": ((190.0, 85.0),), "down": ((190.0, 10.0),)}


def curves_of(**values: list[float]) -> Curves:
    return Curves((0.5,), {name: tuple((value,) for value in runs) for name, runs in values.items()})


def test_a_winner_is_clear_only_when_ahead_in_every_run() -> None:
    (verdict,) = curves_of(a=[0.9, 0.8, 0.7], b=[0.8, 0.7, 0.6], c=[0.1, 0.1, 0.1]).verdicts()
    assert (verdict.winners, verdict.runner_up, verdict.ahead, verdict.clear) == (("a",), "b", 3, True)
    (verdict,) = curves_of(a=[0.9, 0.8, 0.7], b=[0.8, 0.7, 0.75]).verdicts()
    assert (verdict.winners, verdict.ahead, verdict.clear) == (("a",), 2, False)


def test_two_runs_are_too_few_for_a_clear_winner() -> None:
    (verdict,) = curves_of(a=[0.9, 0.8], b=[0.1, 0.1]).verdicts()
    assert (verdict.ahead, verdict.clear) == (2, False)


def test_criteria_that_are_equal_in_every_run_win_together() -> None:
    (verdict,) = curves_of(a=[0.9, 0.8, 0.7], b=[0.5, 0.5, 0.5], c=[0.9, 0.8, 0.7]).verdicts()
    assert (verdict.winners, verdict.runner_up, verdict.clear) == (("a", "c"), "b", True)
    (verdict,) = curves_of(a=[0.9, 0.8, 0.7], b=[0.9, 0.8, 0.7]).verdicts()
    assert (verdict.winners, verdict.runner_up, verdict.clear) == (("a", "b"), "", False)


def test_density_one_has_no_winner() -> None:
    assert Curves((1.0,), {"a": ((1.0,),), "b": ((0.5,),)}).verdicts() == ()


def test_spread_is_lowest_median_highest_per_density() -> None:
    curves = Curves((1.0, 0.5), {"a": ((0.9, 0.3), (0.8, 0.5), (0.7, 0.4))})
    assert curves.spread("a") == ((0.7, 0.8, 0.9), (0.3, 0.4, 0.5))
    assert json.loads(json.dumps(curves.to_json()))["spread"]["a"] == [[0.7, 0.8, 0.9], [0.3, 0.4, 0.5]]


def test_runs_are_put_together_in_order() -> None:
    one, two = Curves((0.5,), {"a": ((0.1,),)}), Curves((0.5,), {"a": ((0.2,),)})
    assert Curves.together([one, two]).values == {"a": ((0.1,), (0.2,))}
    with pytest.raises(MismatchError):
        Curves.together([one, Curves((0.4,), {"a": ((0.2,),)})])
    with pytest.raises(MismatchError):
        Curves.together([])


@pytest.mark.parametrize("values", [{}, {"a": ()}, {"a": ((1.0, 2.0),)}, {"a": ((1.0,),), "b": ()}])
def test_ragged_curves_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(MismatchError):
        Curves((0.5,), values)

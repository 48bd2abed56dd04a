"""`shuffled` has the other criterion's scores, in other places: the same density per layer, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.score import score
from gradtrace.evidence.select import select

SHAPES = {"a": (70, 40), "b": (33, 18)}


@pytest.fixture
def weights() -> dict[str, Any]:
    generator = np.random.default_rng(4)
    return {"a": generator.normal(size=SHAPES["a"]), "b": 0.1 * generator.normal(size=SHAPES["b"])}


def test_each_parameter_keeps_its_scores_in_another_order(
    weights: dict[str, Any], make_ledger: Callable[..., Any]
) -> None:
    ledger = make_ledger(SHAPES)
    own, shuffled = score(ledger, weights), score(ledger, weights, "shuffled")
    for name in SHAPES:
        np.testing.assert_array_equal(np.sort(own[name], axis=None), np.sort(shuffled[name], axis=None))
        assert abs(np.corrcoef(own[name].ravel(), shuffled[name].ravel())[0, 1]) < 0.1
    assert shuffled == score(ledger, weights, "shuffled", of="fisher-step", seed=0)
    assert shuffled != score(ledger, weights, "shuffled", seed=1)


def test_without_a_ledger_it_shuffles_magnitude(weights: dict[str, Any]) -> None:
    found = score(None, weights, "shuffled")
    np.testing.assert_array_equal(np.sort(found["a"], axis=None), np.sort(np.abs(weights["a"]), axis=None))


@pytest.mark.parametrize("granularity", ["element", "tile", "rows"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_its_mask_has_the_density_per_layer_of_the_other(
    granularity: str, scope: str, weights: dict[str, Any]
) -> None:
    whole = {"a": weights["a"][:64, :32], "b": weights["b"][:32, :16]}  # every unit of one size
    scores = score(None, whole, "magnitude"), score(None, whole, "shuffled", granularity=granularity)
    own, shuffled = (select(one, density=0.4, granularity=granularity, scope=scope) for one in scores)
    for name in whole:
        assert own[name].sum() == shuffled[name].sum()
    assert own != shuffled


def test_the_others_options_are_passed_on(weights: dict[str, Any], make_ledger: Callable[..., Any]) -> None:
    ledger: Any = make_ledger(SHAPES)
    options: dict[str, Any] = {"exponent": 0.5}
    found = score(ledger, weights, "shuffled", of="fisher-step", options=options)
    np.testing.assert_array_equal(
        np.sort(found["a"], axis=None), np.sort(score(ledger, weights, **options)["a"], axis=None)
    )
    assert found.provenance["options"]["options"] == options


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"of": "shuffled"}, InvalidValueError, "of: expected another criterion"),
        ({"of": "magnitud"}, UnknownNameError, "Did you mean 'magnitude'"),
        ({"of": "fisher-step"}, InvalidValueError, "expected a ledger for criterion 'fisher-step'"),
        ({"granularity": "column"}, InvalidValueError, "granularity"),
        ({"options": 3}, InvalidValueError, "options: expected a mapping"),
        ({"options": {"power": 3}}, UnknownNameError, "unknown option of criterion 'magnitude'"),
        ({"seed": -1}, InvalidValueError, "seed"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        score(None, {"w": np.ones((2, 2))}, "shuffled", **options)

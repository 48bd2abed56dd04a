"""w^2 F^a is its formula for any exponent, whatever F is made of and however it is normalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.score import score

SHAPES = {"a": (5, 3), "b": (2, 5, 1, 3)}
RECORDED = {"fisher-step": "grad_sumsq", "fisher": "position_sumsq"}


@pytest.fixture
def weights() -> dict[str, Any]:
    generator = np.random.default_rng(4)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def moments() -> dict[str, Any]:
    generator = np.random.default_rng(5)
    return {
        name: generator.exponential(size=shape) * (generator.random(shape) < 0.8)
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("by", list(RECORDED))
@pytest.mark.parametrize("exponent", [0, 0.5, 0.75, 1, 1.0, 2.5, np.float32(0.5)])
def test_the_score_is_the_formula(
    by: str, exponent: Any, weights: dict[str, Any], moments: dict[str, Any], make_ledger: Callable[..., Any]
) -> None:
    ledger = make_ledger(SHAPES, accumulators=(RECORDED[by],), **{RECORDED[by]: moments})
    scores = score(ledger, weights, by, exponent=exponent)
    for name, moment in moments.items():
        for at in np.ndindex(moment.shape):
            expected = (
                0.0 if moment[at] == 0 else float(weights[name][at]) ** 2 * moment[at] ** float(exponent)
            )
            assert scores[name][at] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("orientation", "axes"), [("out,in", (1,)), ("in,out", (0,))])
def test_per_row_divides_by_the_mean_of_the_output(
    orientation: str, axes: tuple[int, ...], make_ledger: Callable[..., Any]
) -> None:
    moment = np.random.default_rng(5).exponential(size=(4, 3))
    moment[1] = moment[:, 1] = 0
    ledger = make_ledger({"w": (4, 3)}, grad_sumsq={"w": moment}, orientation=orientation)
    found = score(ledger, {"w": np.full((4, 3), 2.0)}, "fisher-step", per_row=True, exponent=0.5)["w"]
    with np.errstate(invalid="ignore"):
        expected = 4 * np.sqrt(np.nan_to_num(moment / moment.mean(axis=axes, keepdims=True)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_embeddings_rows_are_its_inputs(make_ledger: Callable[..., Any]) -> None:
    moment = np.random.default_rng(5).exponential(size=(4, 3))
    ledger = make_ledger({"w": (4, 3)}, grad_sumsq={"w": moment}, module_class="Embedding")
    found = score(ledger, {"w": np.ones((4, 3))}, "fisher-step", per_row=True, exponent=1)["w"]
    np.testing.assert_allclose(found, moment / moment.mean(axis=0), rtol=1e-12)


def test_positions_come_before_samples_and_either_can_be_asked_for(make_ledger: Callable[..., Any]) -> None:
    both = {"position_sumsq": {"w": np.full((1, 2), 3.0)}, "sample_sumsq": {"w": np.full((1, 2), 5.0)}}
    ledger, weights = make_ledger({"w": (1, 2)}, accumulators=tuple(both), **both), {"w": np.ones((1, 2))}
    assert score(ledger, weights, "fisher", exponent=1)["w"].tolist() == [[3, 3]]
    assert score(ledger, weights, "fisher", unit="sample", exponent=1)["w"].tolist() == [[5, 5]]
    alone = make_ledger({"w": (1, 2)}, accumulators=("sample_sumsq",), sample_sumsq=both["sample_sumsq"])
    assert score(alone, weights, "fisher", exponent=1)["w"].tolist() == [[5, 5]]
    with pytest.raises(UnknownNameError, match=r"'position_sumsq' in the ledger.*Pass unit='sample'"):
        score(alone, weights, "fisher", unit="position")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"exponent": -0.1}, "exponent: expected a number from 0 up, got -0.1"),
        ({"exponent": "half"}, "exponent"),
        ({"exponent": True}, "exponent"),
        ({"exponent": float("nan")}, "exponent"),
        ({"per_row": "yes"}, "per_row: expected True or False"),
        ({"unit": "token"}, "unit: expected 'position', 'sample' or None"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, Any], match: str, make_ledger: Callable[..., Any]
) -> None:
    ledger = make_ledger(
        {"w": (1, 2)}, accumulators=("position_sumsq",), position_sumsq={"w": np.ones((1, 2))}
    )
    with pytest.raises(InvalidValueError, match=match):
        score(ledger, {"w": np.ones((1, 2))}, "fisher", **options)


def test_a_parameter_without_evidence_below_the_step_is_scored_by_its_steps(
    make_ledger: Callable[..., Any],
) -> None:
    squares = {"w": np.full((1, 2), 3.0), "v": np.full((1, 2), 5.0)}
    ledger = make_ledger(
        {"w": (1, 2), "v": (1, 2)},
        accumulators=("grad_sumsq", "position_sumsq"),
        grad_sumsq={name: 2 * one for name, one in squares.items()},
        position_sumsq=squares,
    )
    ledger["v"].offers = lambda accumulator: accumulator == "grad_sumsq"
    scores = score(ledger, {name: np.ones((1, 2)) for name in squares}, "fisher", exponent=1)
    assert (scores["w"].tolist(), scores["v"].tolist()) == ([[3, 3]], [[10, 10]])


def test_movement_is_minus_the_sum_of_gradient_times_weight(make_ledger: Callable[..., Any]) -> None:
    total = np.array([[1.5, 0.0, -2.0]])
    ledger = make_ledger({"w": (1, 3)}, accumulators=("grad_weight",), grad_weight={"w": total})
    found = score(ledger, {"w": np.ones((1, 3))}, "movement")["w"]
    assert found.tolist() == [[-1.5, 0.0, 2.0]]
    assert not np.signbit(found[0, 1])

"""Each criterion is its formula, in float64, whatever the source of the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

import gradtrace
from gradtrace.errors import InvalidValueError, StateError, UnknownNameError
from gradtrace.evidence.criterion import criteria, criterion
from gradtrace.evidence.score import Scores, score

SHAPES = {"net.0.weight": (5, 3), "net.0.bias": (5,), "net.2.weight": (2, 5, 1, 3)}


@pytest.fixture
def weights() -> dict[str, Any]:
    generator = np.random.default_rng(4)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_the_registry_lists_every_criterion_once_with_its_kind() -> None:
    assert {one.name: one.kind for one in criteria()} == {
        "fisher-step": "ledger",
        "fisher": "ledger",
        "support": "ledger",
        "drift": "ledger",
        "departure": "ledger",
        "sign": "ledger",
        "displacement": "ledger",
        "movement": "ledger",
        "init": "statistic",
        "magnitude": "statistic",
        "wanda": "statistic",
        "marchenko-pastur": "statistic",
        "random": "control",
        "shuffled": "control",
    }
    assert all(one.description and "\n" not in one.description for one in criteria())
    assert [one.name for one in criteria() if one.has_pvalues] == ["drift", "departure", "sign", "init"]
    assert [one.name for one in criteria() if one.has_evalues] == ["sign"]
    assert gradtrace.criteria() == criteria()


def test_of_a_ledger_only_those_criteria_are_listed_that_it_can_answer(
    make_ledger: Callable[..., Any], weights: dict[str, Any]
) -> None:
    ledger = make_ledger(SHAPES)
    listed = [one.name for one in criteria(ledger)]
    assert listed == [one.name for one in criteria() if one.name not in ("fisher", "movement", "wanda")]
    for name in listed:
        scores = score(ledger, weights, by=name)
        assert list(scores) == ["net.0.weight", "net.2.weight"]
        assert (scores.pvalues is not None) == criterion(name).has_pvalues
        assert (scores.evalues is not None) == criterion(name).has_evalues
    assert "drift" not in [one.name for one in criteria(make_ledger(SHAPES, accumulators=("events",)))]


def test_support_is_the_number_of_events(make_ledger: Callable[..., Any], weights: dict[str, Any]) -> None:
    ledger = make_ledger(SHAPES)
    scores = score(ledger, weights, by="support")
    assert list(scores) == ["net.0.weight", "net.2.weight"]
    for name in scores:
        assert scores[name].dtype == np.float64
        np.testing.assert_array_equal(scores[name], ledger[name].events)


def test_the_default_is_tempered_fisher_step(
    make_ledger: Callable[..., Any], weights: dict[str, Any]
) -> None:
    ledger = make_ledger(SHAPES)
    scores = score(ledger, weights)
    assert scores.provenance["criterion"] == "fisher-step"
    for name in scores:
        expected = weights[name].astype(np.float64) ** 2 * ledger[name].grad_sumsq ** 0.5
        np.testing.assert_allclose(scores[name], expected, rtol=1e-14)


def test_small_float32_weights_do_not_vanish_when_squared(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger({"w": (1, 1)}, grad_sumsq={"w": np.array([[1e-20]])})
    scores = score(ledger, {"w": np.array([[1e-30]], np.float32)}, "fisher-step", exponent=1)
    assert scores["w"][0, 0] == pytest.approx(1e-80, rel=1e-6)


def test_displacement_is_the_distance_from_the_decayed_opening_balance(
    make_ledger: Callable[..., Any], update: Callable[..., Any], weights: dict[str, Any]
) -> None:
    ledger = make_ledger(SHAPES, history=(update("AdamW", 10, lr=0.1, weight_decay=0.5),))
    scores = score(ledger, weights, by="displacement")
    for name in scores:
        expected = np.abs(
            weights[name].astype(np.float64) - 0.95**10 * ledger[name].opening.astype(np.float64)
        )
        np.testing.assert_allclose(scores[name], expected, rtol=1e-12)


def test_magnitude_is_the_absolute_value(weights: dict[str, Any]) -> None:
    scores = score(None, weights, by="magnitude")
    assert scores == Scores({name: np.abs(weights[name].astype(float)) for name in scores})


def test_random_is_uniform_and_differs_by_name_and_seed() -> None:
    weights = {"a": np.zeros((80, 90)), "b": np.zeros((80, 90))}
    first, second = score(None, weights, "random"), score(None, weights, "random", seed=1)
    assert stats.kstest(first["a"].ravel(), "uniform").pvalue > 0.01
    assert not np.array_equal(first["a"], first["b"])
    assert not np.array_equal(first["a"], second["a"])
    assert first == score(None, weights, "random", seed=0)


def test_random_is_the_same_in_every_process() -> None:
    code = (
        "import numpy as np; from gradtrace.evidence.score import score;"
        "print(score(None, {'w': np.zeros((1, 2))}, 'random', seed=3)['w'].tolist())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{score(None, {'w': np.zeros((1, 2))}, 'random', seed=3)['w'].tolist()}\n"}


def test_provenance_is_json_and_says_where_scores_come_from(
    make_ledger: Callable[..., Any], weights: dict[str, Any]
) -> None:
    ledger = make_ledger(SHAPES)
    provenance = score(ledger, weights, "init", initializer=stats.uniform(-1, scale=2)).provenance
    assert json.loads(json.dumps(provenance)) == {
        "criterion": "init",
        "kind": "statistic",
        "options": {
            "initializer": "uniform(-1, scale=2)",
            "decay": True,
            "edges": [],
            "per": "dependency",
            "test": "distance",
        },
        "run_id": "run-1",
        "steps": 7,
        "library_version": gradtrace.__version__,
    }
    assert score(None, weights, "random", seed=np.int64(3)).provenance["options"] == {"seed": 3}


def test_a_statistic_scores_exactly_the_ledgers_parameters(make_ledger: Callable[..., Any]) -> None:
    weights = {"frozen": np.ones((2, 2)), "trained": np.ones((2, 2))}
    assert list(score(make_ledger({"trained": (2, 2)}), weights, "magnitude")) == ["trained"]
    assert list(score(None, weights, "magnitude")) == ["frozen", "trained"]


def test_scores_are_read_only_and_do_not_follow_the_model() -> None:
    weights = {"w": np.ones((2, 2))}
    scores = score(None, weights, "magnitude")
    weights["w"][:] = 9
    np.testing.assert_array_equal(scores["w"], np.ones((2, 2)))
    with pytest.raises(ValueError, match="read-only"):
        scores["w"][0, 0] = 3


def test_an_unknown_parameter_of_scores_names_the_nearest(weights: dict[str, Any]) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown parameter 'net\.0\.weigth'.*'net\.0\.weight'"):
        score(None, weights, "magnitude")["net.0.weigth"]


def test_an_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown criterion 'fisher-stp'.*Did you mean 'fisher-step'"):
        score(None, {"w": np.ones((2, 2))}, by="fisher-stp")
    with pytest.raises(UnknownNameError, match=r"expected one of 'fisher-step', .*, \.\.\.$"):
        criterion("zzz")
    with pytest.raises(InvalidValueError, match="by: expected the name of a criterion, got 3"):
        score(None, {"w": np.ones((2, 2))}, by=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("one", criteria(), ids=lambda one: one.name)
def test_an_unknown_option_names_the_criterion(one: Any, make_ledger: Callable[..., Any]) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown option of criterion '{one.name}': 'power'"):
        score(make_ledger({"w": (2, 2)}), {"w": np.ones((2, 2))}, by=one.name, power=0.5)


@pytest.mark.parametrize("name", [one.name for one in criteria() if one.kind == "ledger"])
def test_a_ledger_criterion_without_a_ledger_says_how_to_open_one(name: str) -> None:
    with pytest.raises(
        InvalidValueError, match=rf"expected a ledger for criterion '{name}', got None.*Ledger\.open"
    ):
        score(None, {"w": np.ones((2, 2))}, by=name)


@pytest.mark.parametrize("wrong", ["run.ledger.zarr", {"w": np.ones((2, 2))}, 3])
def test_what_is_no_ledger_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"ledger: expected a Ledger or None.*Ledger\.open"):
        score(wrong, {"w": np.ones((2, 2))}, by="magnitude")


def test_an_accumulator_that_was_not_recorded_is_named(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger({"w": (2, 2)}, accumulators=("events",))
    with pytest.raises(UnknownNameError, match="criterion 'fisher-step' needs the accumulator 'grad_sumsq'"):
        score(ledger, {"w": np.ones((2, 2))})


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("fisher", "'position_sumsq' or 'sample_sumsq'"),
        ("movement", "'grad_weight'"),
        ("wanda", "'input_sumsq'"),
    ],
)
def test_an_accumulator_beyond_the_usual_is_named_with_the_way_out(
    name: str, needed: str, make_ledger: Callable[..., Any]
) -> None:
    way_out = {
        "fisher": ', or record it in the next run with below="positions" or "samples"',
        "wanda": ', or pass inputs=, or record it in the next run with below="inputs"',
        "movement": ", or record it in the next run with movement=True",
    }[name]
    with pytest.raises(
        UnknownNameError,
        match=rf"'{name}' needs the accumulator {needed}: expected it in the ledger, got events, .*"
        rf"Use a criterion that does without it{way_out}$",
    ):
        score(make_ledger({"w": (2, 2)}), {"w": np.ones((2, 2))}, by=name)


@pytest.mark.parametrize("name", ["displacement", "init", "marchenko-pastur"])
def test_a_ledger_that_does_not_tell_the_decay_is_refused_with_the_way_out(
    name: str, make_ledger: Callable[..., Any]
) -> None:
    ledger = make_ledger({"w": (2, 2)}, history=())
    with pytest.raises(StateError, match=r"the decay of parameter 'w'.*got nothing.*Pass decay=False"):
        score(ledger, {"w": np.ones((2, 2))}, by=name)
    assert score(ledger, {"w": np.ones((2, 2))}, by=name, decay=False)["w"].shape == (2, 2)


def test_displacement_without_decay_is_the_distance_from_the_opening_balance(
    make_ledger: Callable[..., Any], update: Callable[..., Any], weights: dict[str, Any]
) -> None:
    ledger = make_ledger(SHAPES, history=(update("Lion", 10, lr=0.1, weight_decay=0.5),))
    scores = score(ledger, weights, by="displacement", decay=False)
    for name in scores:
        expected = np.abs(weights[name].astype(np.float64) - ledger[name].opening)
        np.testing.assert_allclose(scores[name], expected, rtol=1e-12)


@pytest.mark.parametrize("seed", [-1, 0.5, "a", True, None])
def test_a_seed_is_a_number_from_zero_up(seed: Any) -> None:
    with pytest.raises(InvalidValueError, match="seed: expected an integer of at least 0"):
        score(None, {"w": np.ones((2, 2))}, "random", seed=seed)


@pytest.mark.parametrize(
    ("weight", "grad_sumsq"), [(1.0, np.inf), (0.0, np.inf), (1e200, 1.0)], ids=["sum", "NaN", "weight"]
)
def test_what_overflowed_is_an_error_that_names_the_parameter(
    weight: float, grad_sumsq: float, make_ledger: Callable[..., Any]
) -> None:
    ledger = make_ledger({"a.w": (1, 2)}, grad_sumsq={"a.w": np.array([[1.0, grad_sumsq]])})
    with pytest.raises(
        InvalidValueError, match=r"scores of 'a\.w' by 'fisher-step': expected finite numbers"
    ):
        score(ledger, {"a.w": np.full((1, 2), weight)})

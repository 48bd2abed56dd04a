"""Of what is confirmed at q a share of at most q is false, for tests that are fair and some that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import signal, stats

import gradtrace as gt
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.confirm import METHODS, confirm
from gradtrace.evidence.local_fdr import EmpiricalNull, local_fdr
from gradtrace.evidence.multiplicity import discoveries, evalue_discoveries
from gradtrace.evidence.score import Scores, score

SEEDS = range(20)


def judged(pvalues: np.ndarray[Any, Any]) -> Scores:
    return Scores({"w": -pvalues}, {"w": pvalues}, {"criterion": "drift"})


def false_share(kept: np.ndarray[Any, Any], learned: np.ndarray[Any, Any]) -> float:
    return float((kept & ~learned).sum() / max(kept.sum(), 1))


def mixed(seed: int, *, eager: float = 1.0, share: float = 0.1) -> tuple[Scores, np.ndarray[Any, Any]]:
    """Normal tests of which a share is 4 off zero; `eager` times too wide for the theory."""
    generator = np.random.default_rng(seed)
    learned = generator.random((50, 100)) < share
    z = eager * generator.normal(size=learned.shape) + learned * 4 * generator.choice([-1, 1], learned.shape)
    return judged(2 * stats.norm.sf(np.abs(z))), learned


@pytest.mark.parametrize("q", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("method", ["local", "bh", "by"])
def test_of_fair_tests_few_confirmations_are_false(method: Any, q: float) -> None:
    false, power = [], []
    for seed in SEEDS:
        scores, learned = mixed(seed)
        kept = confirm(scores, method, q)["w"]
        false.append(false_share(kept, learned))
        power.append(kept[learned].mean())
    assert np.mean(false) <= 1.2 * q
    assert np.mean(power) > 0.4


@pytest.mark.parametrize("method", ["local", "bh", "by"])
def test_where_nothing_was_learned_hardly_anything_is_confirmed(method: Any) -> None:
    counts = [confirm(mixed(seed, share=0)[0], method, 0.1)["w"].sum() for seed in SEEDS]
    # Under the pure null the rate is the chance of any confirmation at all.
    assert np.mean(np.array(counts) > 0) <= 0.25
    assert np.mean(counts) < 3


def test_an_eager_test_misleads_bh_and_not_the_empirical_null() -> None:
    by_bh, by_local, power = [], [], []
    for seed in SEEDS:
        scores, learned = mixed(seed, eager=1.5)
        kept = confirm(scores, "local", 0.1)["w"]
        by_local.append(false_share(kept, learned))
        by_bh.append(false_share(confirm(scores, "bh", 0.1)["w"], learned))
        power.append(kept[learned].mean())
    assert np.mean(by_bh) > 0.3
    assert np.mean(by_local) <= 0.12
    assert np.mean(power) > 0.3


def counted(z: Any) -> Any:
    return np.bincount((z * 256).astype(np.int64))


@pytest.mark.parametrize("eager", [1.0, 1.5, 2.5])
def test_the_nulls_scale_and_share_are_recovered(eager: float) -> None:
    generator = np.random.default_rng(0)
    z = np.abs(np.concatenate([generator.normal(0, eager, 18_000), generator.normal(6 * eager, 1, 2_000)]))
    null = EmpiricalNull.of(counted(z))
    assert null.scale == pytest.approx(eager, rel=0.1)
    assert null.share == pytest.approx(0.9, abs=0.05)


def test_a_narrow_null_is_left_as_the_theory_has_it() -> None:
    assert EmpiricalNull.of(counted(np.abs(np.random.default_rng(0).normal(0, 0.5, 20_000)))).scale == 1


@pytest.mark.parametrize("z", [np.zeros(5000), np.full(5000, 2.0), np.linspace(0, 9, 5000), np.ones(3)])
def test_z_values_that_no_half_normal_fits_are_left_to_the_theory_or_wider(z: Any) -> None:
    null = EmpiricalNull.of(counted(z))
    assert null.scale >= 1
    assert 0 < null.share <= 1


def test_the_local_rate_is_near_the_true_posterior() -> None:
    generator = np.random.default_rng(1)
    learned = generator.random(200_000) < 0.1
    z = generator.normal(size=learned.size) * np.where(learned, 4, 1)
    rates = local_fdr(2 * stats.norm.sf(np.abs(z)))
    truth = 0.9 * stats.norm.pdf(z) / (0.9 * stats.norm.pdf(z) + 0.1 * stats.norm.pdf(z, scale=4))
    assert np.mean(np.abs(rates - truth)) < 0.05
    order = np.argsort(np.abs(z))
    assert (np.diff(rates[order]) <= 1e-9).all()


def test_dependencies_without_a_test_are_never_confirmed_and_change_nothing() -> None:
    scores, _ = mixed(3)
    assert scores.pvalues is not None
    beside = np.concatenate([scores.pvalues["w"], np.ones((5000, 100))])
    rates = local_fdr(beside)
    np.testing.assert_array_equal(rates[:50], local_fdr(scores.pvalues["w"]))
    assert (rates[50:] == 1).all()
    assert not confirm(judged(beside))["w"][50:].any()


@pytest.mark.parametrize("q", [0.05, 0.1])
def test_ebh_is_its_definition_and_needs_no_independence(q: float) -> None:
    false = []
    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        # Every hundred tests share one draw: as dependent as can be. exp(b z - b^2 / 2) has mean 1.
        learned = np.repeat(generator.random(50) < 0.3, 100)
        z = np.repeat(generator.normal(size=50), 100) + 4 * learned
        evalues = np.exp(3 * z - 4.5)
        kept = evalue_discoveries(evalues.reshape(50, 100), q).ravel()
        ranked = np.sort(evalues)[::-1]
        counts = [k for k in range(1, 5001) if ranked[k - 1] >= 5000 / (k * q)]
        assert kept.sum() == (counts[-1] if counts else 0)
        assert not kept.any() or evalues[kept].min() >= evalues[~kept].max()
        false.append(false_share(kept, learned))
    assert np.mean(false) <= q


@pytest.mark.parametrize("method", ["bh", "by"])
@pytest.mark.parametrize("fdr", [1e-3, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("power", [1, 3, 12])
def test_discoveries_are_scipys(method: Any, fdr: float, power: int) -> None:
    pvalues = np.random.default_rng(power).random((40, 55)) ** power
    pvalues[:7] = pvalues[7:14]  # ties
    expected = stats.false_discovery_control(pvalues.ravel(), method=method) <= fdr
    np.testing.assert_array_equal(discoveries(pvalues, fdr, method).ravel(), expected)


def test_by_is_bh_at_a_rate_divided_by_the_harmonic_sum() -> None:
    pvalues = np.random.default_rng(0).random((30, 40)) ** 5
    harmonic = (1 / np.arange(1, 1201)).sum()
    np.testing.assert_array_equal(discoveries(pvalues, 0.2, "by"), discoveries(pvalues, 0.2 / harmonic))


@pytest.mark.parametrize(
    ("by", "method"), [("drift", "local"), ("drift", "bh"), ("drift", "by"), ("sign", "e-bh"), ("sign", "bh")]
)
def test_under_autocorrelated_gradients_what_was_learned_is_told_from_what_was_not(
    by: str, method: Any, make_gradient_ledger: Callable[..., Any]
) -> None:
    false, power, naive = [], [], []
    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        learned = generator.random((20, 75)) < 0.15
        noise = signal.lfilter([1], [1, -0.8], generator.normal(size=(1380, 1500)), axis=0)[100:]
        gradients = noise.reshape(1280, 20, 75) + 1.2 * learned
        scores = score(make_gradient_ledger(gradients), {"w": np.ones((20, 75))}, by)
        kept = confirm(scores, method, 0.1)["w"]
        false.append(false_share(kept, learned))
        power.append(kept[learned].mean())
        naive.append(
            false_share(discoveries(np.asarray(stats.ttest_1samp(gradients, 0).pvalue), 0.1), learned)
        )
    assert np.mean(false) <= 0.12
    assert np.mean(power) > 0.6
    assert np.mean(naive) > 0.5


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_families_are_layers_or_all(method: Any, scope: Any) -> None:
    generator = np.random.default_rng(0)
    pvalues = {"a": generator.random((30, 40)) ** 6, "b": generator.random((7, 11)), "c": np.ones((0, 3))}
    evalues = {name: 1 / np.maximum(p, 1e-9) for name, p in pvalues.items()}
    scores = Scores(pvalues, pvalues, {"criterion": "sign"}, evalues)
    mask = gt.confirm(scores, method, 0.2, scope)
    evidence = evalues if method == "e-bh" else pvalues
    if scope == "layer":
        expected = np.concatenate([METHODS[method](one, 0.2).ravel() for one in evidence.values()])
    else:
        expected = METHODS[method](np.concatenate([one.ravel() for one in evidence.values()]), 0.2)
    np.testing.assert_array_equal(np.concatenate([kept.ravel() for kept in mask.values()]), expected)
    assert mask.provenance["confirmation"] == {"method": method, "q": 0.2, "scope": scope}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "bonferroni"}, "method: expected one of local, bh, by, e-bh, got 'bonferroni'"),
        ({"q": 0}, r"q: expected a number in \(0, 1\], got 0. Pass e.g. q=0.1"),
        ({"scope": "row"}, "scope: expected one of layer, global"),
        ({"method": "e-bh"}, "method='e-bh': expected scores with e-values.*Score with by='sign'"),
    ],
)
def test_what_cannot_be_confirmed_is_one_clear_error(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidValueError, match=match):
        confirm(judged(np.ones((2, 2))), **options)


def test_scores_that_are_no_test_are_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"method='local': expected scores with p-values.*by='drift'"):
        confirm(score(None, {"w": np.ones((2, 2))}, "magnitude"))
    with pytest.raises(InvalidValueError, match=r"evalues\['w'\]: expected numbers from 0 up, got -1 to -1"):
        confirm(Scores({"w": np.ones((1, 1))}, None, None, {"w": -np.ones((1, 1))}), "e-bh")

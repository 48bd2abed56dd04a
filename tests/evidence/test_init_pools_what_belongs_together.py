"""`init` over tiles and by Kolmogorov-Smirnov, against an initializer known, opened with, or estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.kolmogorov import ks_pvalue
from gradtrace.evidence.score import Scores, score

PAIR = [("0.weight", "2.weight")]
NORMAL = stats.norm(0, 0.02)


def pvalues(scores: Scores, name: str = "w") -> np.ndarray[Any, Any]:
    assert scores.pvalues is not None
    return scores.pvalues[name]


def tiles(array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    rows, columns = array.shape
    return [array[i : i + 16, j : j + 16] for i in range(0, rows, 16) for j in range(0, columns, 16)]


@pytest.mark.parametrize("test", ["distance", "ks"])
@pytest.mark.parametrize("shape", [(48, 64), (50, 37), (5, 3)])
def test_a_tiles_pvalue_is_scipys(test: str, shape: tuple[int, int]) -> None:
    weight = NORMAL.rvs(shape, random_state=np.random.default_rng(1))
    found = pvalues(score(None, {"w": weight}, "init", initializer=NORMAL, per="tile", test=test))
    for tile, own in zip(tiles(weight), tiles(found), strict=True):
        single = 2 * NORMAL.sf(np.abs(tile))
        expected = (
            stats.combine_pvalues(single.ravel(), method="fisher")
            if test == "distance"
            else stats.ks_1samp(tile.ravel(), NORMAL.cdf)
        )
        np.testing.assert_allclose(own, expected.pvalue, rtol=1e-8)


@pytest.mark.parametrize("channels", [1, 4])
def test_an_edges_pvalue_by_ks_is_scipys_of_its_parameters(channels: int) -> None:
    torch.manual_seed(0)
    d = 6
    model = nn.Sequential(nn.Linear(d, channels * d), nn.GELU(), nn.Linear(channels * d, d))
    scores = score(None, model, "init", edges=PAIR, test="ks")
    up, down = (model.get_parameter(name).detach().double().numpy() for name in PAIR[0])
    for i in range(d):
        for j in range(d):
            places = [
                stats.uniform(-(d**-0.5), 2 * d**-0.5).cdf(up[i::d, j]),
                stats.uniform(-((channels * d) ** -0.5), 2 * (channels * d) ** -0.5).cdf(down[i, j::d]),
            ]
            expected = stats.ks_1samp(np.concatenate(places), stats.uniform.cdf).pvalue
            assert pvalues(scores, "0.weight")[i, j] == pytest.approx(expected, rel=1e-6)
            assert pvalues(scores, "2.weight")[i, j] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("decay", [True, False])
def test_against_the_opening_balance_it_is_scipys_two_sample_test(
    decay: bool, make_ledger: Callable[..., Any], update: Callable[..., Any]
) -> None:
    generator = np.random.default_rng(2)
    opening = generator.gamma(2.0, size=(32, 32)).astype(np.float32)
    ledger = make_ledger(
        {"w": (32, 32)},
        opening={"w": opening},
        history=(update("AdamW", 7, lr=0.1, weight_decay=0.5),),
    )
    null = opening.astype(np.float64) * (0.95**7 if decay else 1)
    weight = generator.permutation(null.ravel()).reshape(32, 32)
    weight[:16, :16] = generator.gamma(2.5, size=(16, 16))
    weight[3, 20] = weight[4, 21]  # a tie
    found = score(ledger, {"w": weight}, "init", initializer="opening", per="tile", test="ks", decay=decay)
    for tile, own in zip(tiles(weight), tiles(pvalues(found)), strict=True):
        expected = stats.ks_2samp(tile.ravel(), null.ravel(), method="asymp").pvalue
        np.testing.assert_allclose(own, expected, rtol=1e-8)


def test_against_the_opening_balance_a_pvalue_counts_what_lay_as_far_out(
    make_ledger: Callable[..., Any],
) -> None:
    opening = np.random.default_rng(2).normal(3, 1, size=(20, 30)).astype(np.float32)
    weight = np.random.default_rng(3).normal(3, 2, size=(20, 30))
    found = pvalues(
        score(
            make_ledger({"w": (20, 30)}, opening={"w": opening}), {"w": weight}, "init", initializer="opening"
        )
    )
    middle = np.median(opening.astype(np.float64))
    out = np.abs(opening.astype(np.float64) - middle).ravel()
    for at in np.ndindex(weight.shape):
        expected = (1 + np.sum(out >= abs(weight[at] - middle))) / (1 + out.size)
        assert found[at] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"per": "tile"}, {"test": "ks"}, {"per": "tile", "test": "ks"}])
def test_fresh_weights_are_not_rejected_more_often_than_promised(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    found = pvalues(score(None, nn.Linear(640, 480), "init", **options), "weight")
    units = found[::16, ::16] if "per" in options else found
    for level in (0.01, 0.05, 0.1):
        assert abs(np.mean(units < level) - level) < 4 * np.sqrt(level / units.size)


def test_ks_sees_what_distance_cannot(make_ledger: Callable[..., Any]) -> None:
    weight = NORMAL.rvs((32, 32), random_state=np.random.default_rng(0))
    weight[:16, :16] = 0.0  # too alike, and nothing is far out
    options = {"initializer": NORMAL, "per": "tile"}
    by_ks = pvalues(score(None, {"w": weight}, "init", test="ks", **options))
    by_distance = pvalues(score(None, {"w": weight}, "init", **options))
    assert by_ks[0, 0] < 1e-20
    assert by_distance[0, 0] == 1
    assert by_ks[20, 20] > 0.01


def test_the_scale_of_an_unknown_initializer_is_estimated() -> None:
    generator = np.random.default_rng(0)
    weight = generator.uniform(-0.3, 0.3, (200, 100))
    weight[:20] *= 5
    found = pvalues(score(None, {"w": weight}, "init", initializer="estimated"))
    assert np.mean(found[20:] < 0.01) < 0.012
    assert np.mean(found[:20] < 0.01) > 0.6
    assert np.mean(pvalues(score(None, {"w": weight}, "init"))[20:] < 0.01) > 0.5  # torch's would be 0.1


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
@pytest.mark.parametrize(
    "options", [{"per": "tile"}, {"per": "tile", "test": "ks"}, {"initializer": "estimated"}]
)
def test_an_empty_parameter_has_empty_scores(shape: tuple[int, int], options: dict[str, Any]) -> None:
    assert score(None, {"w": np.zeros(shape)}, "init", **options)["w"].shape == shape


def test_an_opening_balance_of_zeros_rejects_whatever_moved(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger({"w": (10, 10)}, opening={"w": np.zeros((10, 10), np.float32)})
    weight = np.zeros((10, 10))
    weight[0, 0] = 0.1
    found = pvalues(score(ledger, {"w": weight}, "init", initializer="opening"))
    assert found[0, 0] == pytest.approx(1 / 101)
    assert (found.ravel()[1:] == 1).all()


def test_many_ks_pvalues_are_looked_up_closely() -> None:
    statistic = np.random.default_rng(0).uniform(0.02, 0.9, 3000)
    exact = stats.kstwo.sf(statistic, 8)
    np.testing.assert_allclose(np.log(ks_pvalue(statistic, 8)), np.log(exact), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"per": "row"}, "per: expected 'dependency' or 'tile'"),
        ({"test": "t"}, "test: expected 'distance' or 'ks'"),
        ({"initializer": "normal"}, "initializer: expected 'opening', 'estimated', None or"),
        ({"initializer": "opening"}, "initializer='opening': expected a ledger.*Pass the run's ledger"),
        ({"initializer": "estimated"}, "scale of the initializer of 'w': .*Pass the initializer"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidValueError, match=match):
        score(None, {"w": np.zeros((2, 2))}, "init", **options)

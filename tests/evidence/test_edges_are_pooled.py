"""The edges of a d -> k*d -> d block: which parameters form one, and that their pooled p-value is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from gradtrace.errors import InvalidValueError, MismatchError, UnknownNameError
from gradtrace.evidence.score import score
from gradtrace.evidence.select import select

PAIR = [("0.weight", "2.weight")]


def block(d: int, k: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, k * d), nn.GELU(), nn.Linear(k * d, d))


@pytest.mark.parametrize(("d", "k"), [(40, 4), (31, 1), (23, 3), (30, 2)])
def test_pooled_pvalues_are_uniform_under_the_null(d: int, k: int) -> None:
    scores = score(None, block(d, k), "init", edges=PAIR)
    assert scores.pvalues is not None
    edges = scores.pvalues["0.weight"].reshape(k, d, d)[0]
    assert stats.kstest(edges.ravel(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_a_chi_square_on_the_weights_would_be_a_straw_man(seed: int) -> None:
    # Uniform weights have light tails: squared, they hardly ever look unlikely to a normal null.
    d, k = 60, 4
    model = block(d, k, seed)
    scores = score(None, model, "init", edges=PAIR)
    assert scores.pvalues is not None
    exact = np.mean(scores.pvalues["0.weight"] < 0.01)
    up, down = (model.get_parameter(name).detach().double().numpy() for name in PAIR[0])
    z = (up * np.sqrt(3 * d)).reshape(k, d, d) ** 2, (down * np.sqrt(3 * k * d)).reshape(d, k, d) ** 2
    naive = np.mean(stats.chi2.sf(z[0].sum(0) + z[1].sum(1), 2 * k) < 0.01)
    assert 0.005 < exact < 0.016
    assert naive < 0.002


def test_an_edge_is_formed_by_the_documented_parameters() -> None:
    d, k, i, j = 5, 4, 3, 1
    model = block(d, k)
    before = score(None, model, "init", edges=PAIR)
    with torch.no_grad():
        model.get_parameter("0.weight")[2 * d + i, j] = 9.0
    after = score(None, model, "init", edges=PAIR)
    up, down = (np.argwhere(before[name] != after[name]).tolist() for name in PAIR[0])
    assert up == [[c * d + i, j] for c in range(k)]
    assert down == [[i, c * d + j] for c in range(k)]


def test_every_parameter_of_an_edge_has_the_edges_pvalue_and_score() -> None:
    d, k = 6, 3
    scores = score(None, block(d, k), "init", edges=PAIR)
    assert scores.pvalues is not None
    for found in (scores, scores.pvalues):
        up, down = (found[name] for name in PAIR[0])
        np.testing.assert_array_equal(up, np.tile(up[:d], (k, 1)))
        np.testing.assert_array_equal(down, np.tile(up[:d], (1, k)))


def test_pooling_is_fishers_method() -> None:
    d, k = 4, 2
    model = block(d, k)
    single, pooled = score(None, model, "init"), score(None, model, "init", edges=PAIR)
    assert single.pvalues is not None
    assert pooled.pvalues is not None
    up, down = (single.pvalues[name] for name in PAIR[0])
    for i in range(d):
        for j in range(d):
            parts = [up[c * d + i, j] for c in range(k)] + [down[i, c * d + j] for c in range(k)]
            expected = stats.combine_pvalues(parts, method="fisher").pvalue
            assert pooled.pvalues["0.weight"][i, j] == pytest.approx(expected, rel=1e-9)


def test_a_weight_beyond_its_bound_rejects_its_edge_and_keeps_an_order() -> None:
    model = block(4, 4)
    with torch.no_grad():
        up = model.get_parameter("0.weight")
        up[0, 0], up[1, 1] = 3.0, 30.0
    scores = score(None, model, "init", edges=PAIR)
    assert scores.pvalues is not None
    assert scores.pvalues["2.weight"][0, 0] == scores.pvalues["2.weight"][1, 1] == 0
    assert scores["2.weight"][1, 1] > scores["2.weight"][0, 0] > scores["2.weight"][2, 2]
    kept = select(scores, fdr=1e-6)
    assert kept["2.weight"].sum() == kept["0.weight"].sum() == 8


def test_other_parameters_are_tested_one_by_one() -> None:
    model = nn.Sequential(*block(4, 4), nn.Linear(4, 9))
    assert np.array_equal(
        score(None, model, "init", edges=PAIR)["3.weight"], score(None, model, "init")["3.weight"]
    )


@pytest.mark.parametrize(
    ("edges", "error", "match"),
    [
        (
            [("0.weight", "3.weight")],
            MismatchError,
            r"do not form a d -> k\*d -> d block.*\(16, 4\) and \(9, 4\)",
        ),
        ([("2.weight", "0.weight")], MismatchError, "do not form"),
        ([("0.weight", "conv.weight")], MismatchError, "'conv.weight' in edges: expected two dimensions"),
        ([("0.weight", "0.weight")], InvalidValueError, "in one place only"),
        ([*PAIR, *PAIR], InvalidValueError, "in one place only"),
        ([("0.weigth", "2.weight")], UnknownNameError, "Did you mean '0.weight'"),
        (["0.weight"], InvalidValueError, "pairs"),
        ("0.weight", InvalidValueError, "pairs"),
        ([("0.weight",)], InvalidValueError, "pairs"),
        (5, InvalidValueError, "pairs"),
    ],
)
def test_what_forms_no_block_is_refused(edges: Any, error: type[Exception], match: str) -> None:
    shapes = {"0.weight": (16, 4), "2.weight": (4, 16), "3.weight": (9, 4), "conv.weight": (4, 16, 1)}
    with pytest.raises(error, match=match):
        score(None, {name: np.zeros(shape) for name, shape in shapes.items()}, "init", edges=edges)

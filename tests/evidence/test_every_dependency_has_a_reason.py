"""What is kept and dropped, and why: learned and important are told apart, and the counts add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradtrace as gt
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.confirm import confirm
from gradtrace.evidence.explain import Explanation, Reason, explain
from gradtrace.evidence.score import score
from gradtrace.evidence.select import select
from gradtrace.report.learned_tables import explanation_lines, explanation_table

SHAPE = (40, 50)


@pytest.fixture
def run(make_gradient_ledger: Callable[..., Any]) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """Column 0 never supported; columns 1-19 learned, of which 1-9 with weights near zero; the rest noise."""
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(640, *SHAPE))
    gradients[:, :, 1:20] += 1.0
    gradients[:, :, 0] = 0
    weight = -generator.normal(1.0, 0.1, SHAPE)  # where such gradients take it, from zero
    weight[:, 1:10] *= 1e-3
    return make_gradient_ledger(gradients, opening={"w": np.zeros(SHAPE)}), {"w": weight}


def test_reasons_follow_from_score_test_and_support(run: Any) -> None:
    ledger, weights = run
    found = explain(ledger, weights, 0.5)
    matters = select(score(ledger, weights), density=0.5)["w"]
    learned = confirm(score(ledger, weights, "departure"), "local", 0.1)["w"]
    for at in np.ndindex(SHAPE):
        if at[1] == 0:
            expected = Reason.NEVER_SUPPORTED
        elif matters[at]:
            expected = Reason.MATTERS_AND_LEARNED if learned[at] else Reason.MATTERS_UNCONFIRMED
        else:
            expected = Reason.LEARNED_BUT_MINOR if learned[at] else Reason.NOT_LEARNED
        assert found.reasons["w"][at] == expected
        assert found.mask["w"][at] == expected.kept
    learned_minor = found.reasons["w"][:, 1:10] == Reason.LEARNED_BUT_MINOR
    assert learned_minor.mean() > 0.95
    assert (found.reasons["w"][:, 20:] == Reason.LEARNED_BUT_MINOR).mean() < 0.01


def test_without_a_density_only_what_got_nothing_is_dropped(run: Any) -> None:
    ledger, weights = run
    weights["w"][3, 30] = 0.0
    dropped = ~gt.explain(ledger, weights).mask["w"]
    assert dropped[:, 0].all()
    assert np.argwhere(dropped[:, 1:]).tolist() == [[3, 29]]


def test_room_in_the_density_keeps_nothing_that_was_never_supported(run: Any) -> None:
    found = explain(run[0], run[1], 1.0)
    assert not found.mask["w"][:, 0].any()
    assert found.mask["w"][:, 1:].all()


@pytest.mark.parametrize("granularity", ["tile", "rows"])
def test_units_stay_whole_and_say_so(granularity: str, run: Any) -> None:
    ledger, weights = run
    found = explain(ledger, weights, 0.5, granularity=granularity)
    assert found.mask == select(score(ledger, weights), density=0.5, granularity=granularity)
    first = found.reasons["w"][:, 0]
    assert set(first[found.mask["w"][:, 0]]) <= {Reason.KEPT_WITH_ITS_UNIT}
    assert set(first[~found.mask["w"][:, 0]]) <= {Reason.NEVER_SUPPORTED}


def test_what_is_learned_and_what_matters_can_be_asked_of_others(run: Any) -> None:
    ledger, weights = run
    options: dict[str, Any] = {"exponent": 0.5}
    found = explain(
        ledger, weights, 0.3, by="fisher-step", options=options, test="sign", method="e-bh", q=0.2
    )
    supported = ledger["w"].events > 0
    assert (found.mask["w"] == (select(score(ledger, weights, **options), 0.3)["w"] & supported)).all()
    learned = confirm(score(ledger, weights, "sign"), "e-bh", 0.2)["w"]
    codes = found.reasons["w"]
    assert (
        np.isin(codes, (Reason.LEARNED_BUT_MINOR, Reason.MATTERS_AND_LEARNED)) == (learned & supported)
    ).all()
    assert found.mask.provenance["test"]["confirmation"]["method"] == "e-bh"


def test_counts_table_and_json_add_up(run: Any) -> None:
    found = explain(run[0], run[1], 0.5)
    counts = found.counts()["w"]
    assert sum(counts.values()) == 2000
    assert counts[Reason.NEVER_SUPPORTED] == 40
    data = json.loads(json.dumps(found.to_json()))
    assert data["parameters"]["w"]["never_supported"] == 40
    assert data["reasons"]["not_learned"] == {"kept": False, "why": Reason.NOT_LEARNED.words}
    assert data["density"] == found.mask.density
    table, lines = explanation_table(found), explanation_lines(found)
    assert table.rows[0][0] == "w"
    assert "dropped 2.0%: never supported by any step" in lines
    shares = [float(line.split()[1].rstrip("%:")) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_an_explanation_is_read_only(run: Any) -> None:
    found: Explanation = explain(run[0], run[1], 0.5)
    with pytest.raises(ValueError, match="read-only"):
        found.reasons["w"][0, 0] = 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"density": 0}, "density: expected a number"),
        ({"test": "magnitude"}, "method='local': expected scores with p-values"),
        ({"method": "none"}, "method: expected one of"),
        ({"q": 2}, "q: expected a number"),
        ({"ledger": None}, "ledger: expected a ledger, which says what was supported.*Ledger.open"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], match: str, run: Any) -> None:
    with pytest.raises(InvalidValueError, match=match):
        explain(**({"ledger": run[0], "weights": run[1]} | options))

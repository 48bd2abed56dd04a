from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.comparison.comparison_file import FORMAT
from gradtrace.comparison.cost import metered
from gradtrace.errors import (
    InvalidValueError,
    MismatchError,
    UnknownNameError,
    UnreadableFileError,
    UnsupportedFormatError,
)
from gradtrace.evidence.agreement import agreement
from gradtrace.evidence.criterion import criterion

DENSITIES = (0.5, 0.2)


@pytest.fixture(scope="module")
def found(recorded: Any) -> gt.Comparison:
    each = [gt.compare(*run, by=["fisher-step", "magnitude"], densities=DENSITIES) for run in recorded]
    return gt.Comparison.together(each)


def test_quality_is_that_of_each_mask_on_its_own(found: gt.Comparison, recorded: Any) -> None:
    assert found.names == ("fisher-step", "magnitude", "random", "shuffled")
    ledger, net, validate = recorded[1]
    for name, options in {"fisher-step": {}, "shuffled": {"of": "magnitude"}}.items():
        scores = gt.score(ledger, net, name, **options)
        expected = [validate(gt.apply_mask_(deepcopy(net), gt.select(scores, density=d))) for d in DENSITIES]
        assert found.runs[1].quality[name] == pytest.approx(expected)
    assert found.runs[1].dense == validate(net)


def test_agreement_and_shapes_are_those_of_the_masks(found: gt.Comparison, recorded: Any) -> None:
    ledger, net, _ = recorded[0]
    masks = {
        name: gt.select(gt.score(ledger, net, name), density=0.2)
        for name in ("fisher-step", "magnitude", "random")
    }
    expected, got = agreement(masks), found.runs[0].agreement[1]
    np.testing.assert_allclose(np.array(got.jaccard)[:3, :3], expected.jaccard)
    np.testing.assert_allclose(np.array(got.chance)[:3, :3], expected.chance)
    both = (got.jaccard[0][1] + found.runs[1].agreement[1].jaccard[0][1]) / 2
    assert found.agreement(1).jaccard[0][1] == pytest.approx(both)
    layers = found.runs[0].layers["magnitude"][1]
    assert {name: shape.kept for name, shape in layers.items()} == {"0.weight": 48, "2.weight": 12}
    assert layers["0.weight"].inputs == masks["magnitude"]["0.weight"].any(axis=0).sum()


def test_costs_say_what_was_read(recorded: Any) -> None:
    every = gt.compare(*recorded[0][:2], densities=(0.5,)).runs[0].cost
    assert set(every) >= {one.name for one in gt.criteria(recorded[0].ledger)}
    reads = {name: cost.reads for name, cost in every.items()}
    assert reads["support"] == ("events",)
    assert reads["fisher-step"] == ("grad_sumsq", "final weights")
    assert reads["displacement"] == ("opening balance", "decay history", "final weights")
    assert reads["magnitude"] == ("final weights",)
    assert reads["random"] == reads["shuffled"] == ()
    assert all(cost.seconds > 0 and cost.memory >= 300 * 8 for cost in every.values())


def test_the_peak_of_memory_is_measured() -> None:
    result, seconds, memory = metered(lambda: np.ones(1_000_000).sum())
    assert result == 1_000_000
    assert 8_000_000 <= memory < 9_000_000
    assert seconds > 0


def test_with_a_global_scope_each_criterion_has_a_shuffled_mask_of_its_own(recorded: Any) -> None:
    one = gt.compare(*recorded[0], by=["magnitude", "fisher-step"], densities=(0.3,), scope="global")
    assert one.names == ("magnitude", "fisher-step", "random", "shuffled magnitude", "shuffled fisher-step")
    assert one.controls("fisher-step") == ("random", "shuffled fisher-step")
    layers = one.runs[0].layers
    for name in ("magnitude", "fisher-step"):
        kept = {n: shape.kept for n, shape in layers[name][0].items()}
        assert kept == {n: shape.kept for n, shape in layers[f"shuffled {name}"][0].items()}


def test_a_criterion_of_ones_own_takes_part(recorded: Any) -> None:
    known = criterion("fisher-step")
    option = next(iter(known.options), None)
    assert option is not None
    own = replace(known, name="my own", judging=partial(known.judging, **{option: known.options[option]}))
    one = gt.compare(*recorded[0][:2], by=["magnitude", own], densities=(0.5,), scope="global")
    assert "shuffled my own" in one.names
    assert not one.has_quality
    with pytest.raises(InvalidValueError, match="validate"):
        one.quality("my own")
    with pytest.raises(InvalidValueError, match="different names"):
        gt.compare(*recorded[0][:2], by=["magnitude", replace(own, name="magnitude")])


def test_without_a_ledger_statistics_are_compared(recorded: Any) -> None:
    one = gt.compare(None, recorded[0].net, densities=(0.5,))
    assert "magnitude" in one.names
    assert {contender.kind for contender in one.contenders} == {"statistic", "control"}


def test_what_the_run_is_not_fit_for_is_left_out_with_its_reason_unless_asked_for(tmp_path: Path) -> None:
    net = nn.Linear(4, 4)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=0.1, weight_decay=0.1)
    with gt.Recorder(net, tmp_path / "a", window_steps=1) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(8, 4)).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
    ledger = gt.Ledger.open(tmp_path / "a")
    one = gt.compare(ledger, net, densities=(0.5,))
    assert "displacement" in one.runs[0].left_out
    assert "displacement" not in one.names
    assert json.loads(json.dumps(one.to_json()))["runs"][0]["left_out"]["displacement"]
    with pytest.raises(gt.GradtraceError):
        gt.compare(ledger, net, by=["displacement"], densities=(0.5,))


def test_every_step_is_told(recorded: Any) -> None:
    told: list[str] = []
    gt.compare(*recorded[0], by=["magnitude"], densities=(0.5, 0.1), on_step=told.append)
    assert told == [f"scoring {n}" for n in ("magnitude", "random", "shuffled")] + [
        f"measuring {n}" for n in ("magnitude", "random", "shuffled") for _ in range(2)
    ]


def test_the_model_is_left_as_it_was_also_by_a_validation_that_changes_it(recorded: Any) -> None:
    ledger, net, _ = recorded[0]
    before = deepcopy(net.state_dict())

    def destroys(asked: nn.Module) -> float:
        value = float(next(asked.parameters()).detach().abs().sum())
        for parameter in asked.parameters():
            parameter.data.zero_()
        return value

    one = gt.compare(ledger, net, destroys, by=["magnitude"], densities=(0.5,))
    assert one.runs[0].quality["magnitude"][0] > 0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("given", "words"),
    [("good", "a number"), (None, "a number"), (float("nan"), "finite"), (torch.ones(2), "a number")],
)
def test_a_quality_of_no_use_is_refused(recorded: Any, given: object, words: str) -> None:
    ledger, net, _ = recorded[0]
    with pytest.raises(InvalidValueError, match=f"validate: expected it to return .*{words}"):
        gt.compare(ledger, net, lambda asked: given, by=["magnitude"])  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"densities": (0.5, 0.5)}, InvalidValueError, "each once"),
        ({"densities": ()}, InvalidValueError, "at least one"),
        ({"densities": (0.0,)}, InvalidValueError, "density"),
        ({"scope": "galaxy"}, InvalidValueError, "scope"),
        ({"granularity": "atom"}, InvalidValueError, "granularity"),
        ({"by": ["magnitud"]}, UnknownNameError, "Did you mean 'magnitude'"),
        ({"by": [3]}, InvalidValueError, "by"),
    ],
)
def test_arguments_out_of_range_are_refused(
    recorded: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        gt.compare(*recorded[0][:2], **options)


def test_a_mapping_of_weights_cannot_be_validated(recorded: Any) -> None:
    ledger, net, validate = recorded[0]
    with pytest.raises(InvalidValueError, match=r"nn\.Module"):
        gt.compare(ledger, net.state_dict(), validate)


def test_only_comparisons_of_one_question_are_joined_and_no_run_twice(recorded: Any) -> None:
    one = gt.compare(*recorded[0], by=["magnitude"], densities=(0.5,))
    with pytest.raises(MismatchError, match="a run once"):
        gt.Comparison.together([one, one])
    with pytest.raises(MismatchError, match="same densities"):
        gt.Comparison.together([one, gt.compare(*recorded[1], by=["magnitude"], densities=(0.4,))])
    with pytest.raises(MismatchError, match="in every run, or in none"):
        gt.Comparison.together([one, gt.compare(*recorded[1][:2], by=["magnitude"], densities=(0.5,))])
    with pytest.raises(MismatchError, match="at least one"):
        gt.Comparison.together([])


def test_a_comparison_comes_back_from_its_file(found: gt.Comparison, tmp_path: Path) -> None:
    found.save(tmp_path / "c.json")
    assert gt.Comparison.load(tmp_path / "c.json") == found
    document = json.loads((tmp_path / "c.json").read_text())
    assert (document["kind"], document["format"]) == ("gradtrace comparison", FORMAT)
    assert document["summary"]["quality"]["reference"] == "magnitude"
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


BROKEN = {
    "NaN": lambda d: d["runs"][0].update(dense=float("nan")),
    "no runs": lambda d: d.update(runs=[]),
    "a contender missing": lambda d: d["runs"][0]["quality"].pop("random"),
    "a density missing": lambda d: d["runs"][0]["quality"].update(random=[0.5]),
    "a name of control characters": lambda d: d["contenders"][0].update(name="\x1b[31m"),
    "a negative count": lambda d: d["runs"][0]["layers"]["random"][0]["0.weight"].update(kept=-1),
    "a ragged matrix": lambda d: d["runs"][0]["agreement"][0]["jaccard"].pop(),
    "no object": lambda d: d.update(runs=3),
    "words": lambda d: d.update(densities="half"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_one_of_our_errors(found: gt.Comparison, tmp_path: Path, how: str) -> None:
    document = json.loads(json.dumps(found.to_json()))
    BROKEN[how](document)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UnreadableFileError, match="is broken"):
        gt.Comparison.load(path)


def test_other_files_are_told_from_comparisons(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        gt.Comparison.load(path)
    path.write_text("[1, 2")
    with pytest.raises(UnreadableFileError, match="is not JSON"):
        gt.Comparison.load(path)
    path.write_text("{}")
    with pytest.raises(UnreadableFileError, match="is not a comparison"):
        gt.Comparison.load(path)
    path.write_text(json.dumps({"kind": "gradtrace comparison", "format": "2.0"}))
    with pytest.raises(UnsupportedFormatError, match=r"unknown format"):
        gt.Comparison.load(path)

"""The page that compare.py writes: its figures, told in the order in which one would ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from criteria_compared import Compared
from side_by_side import BATCHES, side_by_side_table

import gradtrace as gt
from gradtrace.evidence.growth import Growth
from gradtrace.evidence.span_shares import SpanShares
from gradtrace.report.comparison_page import (
    agreement_section,
    cost_section,
    growth_section,
    quality_section,
    structure_section,
)
from gradtrace.report.heatmaps import heatmaps
from gradtrace.report.latency_plot import latency_plot
from gradtrace.report.page import Page, Picture, Section
from gradtrace.report.tables import never_supported_table, plan_lines, plan_table

__all__ = ["ACCURACY", "speed", "story"]

ACCURACY = "held-out accuracy"
Facts = Mapping[str, Mapping[str, Any]]


def speed(facts: Facts, size: int) -> float:
    """How many times as fast as dense the decomposed model is, at one batch size."""
    dense, decomposed = (
        facts[name][f"latency at batch {size}"]["median"] for name in ("dense", "decomposed")
    )
    return float(dense / decomposed)


def story(
    found: Compared, growth: tuple[Growth, SpanShares], converted: tuple[gt.Plan, Facts] | None
) -> Page:
    """The page; `converted` is the plan of the run that convert.py converted and its models' figures."""
    seeds, dense = len(found.by_element.runs), found.by_element.dense
    facts = [
        ("never supported, of all weights", f"{found.never.share:.1%}"),
        (f"dense accuracy, mean of {seeds}", f"{dense.mean:.1%}"),
    ]
    sections = [
        never_section(found),
        *quality_section(found.by_element, ylabel=ACCURACY),
        rows_section(found),
    ]
    sections += [agreement_section(found.by_element), structure_section(found.by_element)]
    sections += [growth_section(*growth), cost_section(found.by_element)]
    if converted is not None:
        plan, models = converted
        before, after = models["dense"], models["decomposed"]
        facts += [
            (f"decomposed accuracy (dense {before['accuracy']:.1%})", f"{after['accuracy']:.1%}"),
            (f"speed beside dense, batch {BATCHES[-1]}", f"{speed(models, BATCHES[-1]):.2f}x"),
            ("parameters, share of dense", f"{after['parameters'] / before['parameters']:.0%}"),
        ]
        sections += [plan_section(plan), speed_section(plan, models)]
    return Page(
        title="What the digits taught, and what of it is needed",
        summary=f"{seeds} MLPs (784-512-512-10) trained on 4,000 real digits with the gradient ledger on. "
        "Which weights did the data support, which criterion keeps the right ones, and what does that buy?",
        facts=tuple(facts),
        sections=tuple(sections),
        footer=f"gradtrace {gt.__version__}, torch {torch.__version__}. All figures are in compare.json.",
    )


def never_section(found: Compared) -> Section:
    return Section(
        "What the data never taught",
        (
            "A weight without a single event never got a nonzero gradient in any recorded step: its input "
            "was zero whenever its output could still learn. The ledger counts these exactly; final weights "
            "only hint at them. Below: how many of them each criterion finds that sees the weights alone.",
        ),
        tables=(never_supported_table(found.never),),
    )


def rows_section(found: Compared) -> Section:
    curves, _ = quality_section(
        found.by_rows, ylabel=ACCURACY, title="The same where the structure must run fast"
    )
    words = (
        "Here 64 outputs at once share one set of inputs, so that what stays runs as dense products. Scores "
        "are averaged over the 64: inputs that are busy everywhere win everywhere, and the layer loses all "
        "others at once. Mind the lines of the controls."
    )
    return replace(curves, paragraphs=(words,))


def plan_section(plan: gt.Plan) -> Section:
    return Section(
        "The structure, before and after",
        (
            "What one run was converted to. A layer that would not be faster stays dense and keeps its "
            "original weights.",
        ),
        (
            Picture(
                heatmaps(plan),
                "The masks of every layer, and what runs in their place.",
                "Left: the weights a layer keeps, as they lie in the model. Right: what runs in its place, "
                "with the inputs and outputs of each sub-operator side by side.",
            ),
        ),
        (plan_table(plan),),
        plan_lines(plan),
    )


def speed_section(plan: gt.Plan, models: Facts) -> Section:
    milliseconds = {
        f"batch {size}": {name: at[f"latency at batch {size}"]["median"] * 1e3 for name, at in models.items()}
        for size in BATCHES
    }
    speeds = ", ".join(f"{speed(models, size):.2f}x at batch {size}" for size in BATCHES)
    return Section(
        "Speed, beside dense",
        (
            "The decomposed model computes what the dense model with the same mask computes; all three are "
            "timed in turns, in the same run. The density was chosen by these same held-out images.",
        ),
        (
            Picture(
                latency_plot(milliseconds),
                "Bars: median milliseconds a batch, per model.",
                "Shorter is faster. Each batch size has its own scale.",
            ),
        ),
        (side_by_side_table(plan, models),),
        (f"The decomposed model's speed relative to dense: {speeds}.",),
    )

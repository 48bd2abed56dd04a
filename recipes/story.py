"""The page that compare.py writes: its figures, told in the order in which one would ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from criteria_compared import AGREE_AT, Compared
from side_by_side import BATCHES

import gradtrace as gt
from gradtrace.report.page import Page, Picture, Section
from gradtrace.report.table import Table
from gradtrace.report.tables import plan_lines, verdict_lines

__all__ = ["AGREEMENT", "NEVER", "QUALITY", "ROWS", "SPEED", "STRUCTURE", "findings", "story"]

NEVER, QUALITY, ROWS, AGREEMENT, STRUCTURE, SPEED = (
    "never",
    "quality",
    "rows",
    "agreement",
    "structure",
    "latency",
)
TITLES = {
    NEVER: "What the data never taught",
    QUALITY: "Which criterion keeps the right weights",
    ROWS: "The same where the structure must run fast",
    AGREEMENT: "Do the criteria agree?",
    STRUCTURE: "The structure, before and after",
    SPEED: "Speed, beside dense",
}
WORDS = {
    NEVER: "A weight without a single event never got a nonzero gradient in any recorded step: its input was "
    "zero whenever its output could still learn. The ledger counts these exactly; the final weights only "
    "hint at them. Below: how many of them each criterion finds that sees the weights alone.",
    QUALITY: "Each layer keeps the share of its weights that a criterion scores best; the rest is zeroed, "
    "and nothing is trained afterwards. Higher is better; random is what a criterion has to beat.",
    ROWS: "Here 64 outputs at once share one set of inputs, so that what stays runs as dense products. "
    "Scores are summed over the 64: inputs that are busy everywhere win everywhere, and the layer loses "
    "all others at once. Mind the line of random.",
    AGREEMENT: f"Two masks at density {AGREE_AT:g} agree as far as they keep the same weights. Two random "
    "masks of the same sizes agree a little too: that level stands beside.",
    STRUCTURE: "What one run was converted to. A layer that would not be faster stays dense and keeps its "
    "original weights.",
    SPEED: "The decomposed model computes what the dense model with the same mask computes; all three are "
    "timed in turns, in the same run. The density was chosen by looking at these same held-out images.",
}
PICTURES = {
    QUALITY: (
        "Accuracy over density, one line a criterion.",
        "Median accuracy over the seeds; the band reaches from the worst seed to the best.",
    ),
    ROWS: (
        "Accuracy over density for row groups, one line a criterion.",
        "Median accuracy over the seeds; the band reaches from the worst seed to the best.",
    ),
    AGREEMENT: (
        "Matrix of the agreement of each two criteria, chance level in brackets.",
        "1 means that two criteria keep the same weights; in brackets, what chance would give.",
    ),
    STRUCTURE: (
        "The masks of every layer, and what runs in their place.",
        "Left: the weights a layer keeps, as they lie in the model. Right: what runs in its place, with the "
        "inputs and outputs of each sub-operator side by side.",
    ),
    SPEED: (
        "Bars: median milliseconds a batch, per model.",
        "Shorter is faster. Each batch size has its own scale.",
    ),
}


def speed(facts: Mapping[str, Mapping[str, Any]], size: int) -> float:
    """How many times as fast as dense the decomposed model is, at one batch size."""
    dense, decomposed = (
        facts[name][f"latency at batch {size}"]["median"] for name in ("dense", "decomposed")
    )
    return float(dense / decomposed)


def findings(
    found: Compared, plan: gt.Plan, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[str, ...]]:
    """What the figures say, in sentences, by section."""
    tied = tuple(
        f"Of what {name} keeps at density {AGREE_AT:g}, {share:.0%} ties with something dropped: there "
        "the lot decided, not the criterion."
        for name, share in found.ties.items()
        if share > 0.01
    )
    speeds = ", ".join(f"{speed(facts, size):.2f}x at batch {size}" for size in BATCHES)
    return {
        NEVER: (),
        QUALITY: (*verdict_lines(found.by_element), *tied),
        ROWS: verdict_lines(found.by_rows),
        AGREEMENT: (),
        STRUCTURE: plan_lines(plan),
        SPEED: (f"The decomposed model's speed relative to dense: {speeds}.",),
    }


def story(
    seeds: int,
    found: Compared,
    facts: Mapping[str, Mapping[str, Any]],
    said: Mapping[str, tuple[str, ...]],
    tables: Mapping[str, Table],
    pictures: Mapping[str, bytes],
) -> Page:
    """The page; `facts` maps model -> its figures, `said`, `tables` and `pictures` are by section."""
    dense, decomposed = facts["dense"], facts["decomposed"]
    middle = found.by_element.spread(next(iter(found.by_element.values)))[0][1]

    def section(name: str) -> Section:
        pictured = (Picture(pictures[name], *PICTURES[name]),) if name in pictures else ()
        return Section(TITLES[name], (WORDS[name],), pictured, (tables[name],), said[name])

    return Page(
        title="What the digits taught, and what of it is needed",
        summary=f"{seeds} MLPs (784-512-512-10) trained on 4,000 real digits with the gradient ledger on. "
        "Which weights did the data support, which criterion keeps the right ones, and what does that buy?",
        facts=(
            ("never supported, of all weights", f"{found.never.share:.1%}"),
            (f"dense accuracy, median of {seeds}", f"{middle:.1%}"),
            (f"decomposed accuracy (dense {dense['accuracy']:.1%})", f"{decomposed['accuracy']:.1%}"),
            (f"speed beside dense, batch {BATCHES[-1]}", f"{speed(facts, BATCHES[-1]):.2f}x"),
            ("parameters, share of dense", f"{decomposed['parameters'] / dense['parameters']:.0%}"),
        ),
        sections=tuple(section(name) for name in TITLES),
        footer=f"gradtrace {gt.__version__}, torch {torch.__version__}. All figures are in compare.json.",
    )

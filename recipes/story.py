"""The page that compare.py writes: its figures, told in the order in which one would ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import gradtrace as gt
from gradtrace.evidence.curves import Curves
from gradtrace.evidence.never_supported import NeverSupported
from gradtrace.report.page import Page, Picture, Section
from gradtrace.report.table import Table
from gradtrace.report.tables import plan_lines, verdict_lines

__all__ = ["story"]

SUMMARY = (
    "{seeds} MLPs (784-512-512-10) trained on 4,000 real digits with the gradient ledger on. Which "
    "weights did the data support, which criterion keeps the right ones, and what does that buy?"
)
ONE_SHOT = (
    "Each layer keeps the best-scored share of its weights; the rest is set to zero, and nothing is "
    "trained afterwards."
)
ROWS = (
    "Groups of 64 outputs share one set of inputs, so that what stays runs as dense products. Scores "
    "are summed over a group: inputs that are busy everywhere win in every group, and the layer loses "
    "all others at once. Mind the line of random."
)
NEVER = (
    "A weight without a single event never got a nonzero gradient in any recorded step: its input was "
    "zero whenever its output could still learn. The ledger counts these exactly; the final weights "
    "only hint at them."
)
AGREE = "Kept by both over kept by either, beside what two random masks of these sizes would reach."
STRUCTURE = (
    "Dark: kept. On the left each mask as it lies in the model, on the right with the rows and columns "
    "of each sub-operator side by side."
)
BESIDE = (
    "The decomposed model computes what the dense model with the same mask computes; all three are "
    "timed in turns, in the same run. The density was chosen by looking at these same held-out images."
)


def story(
    seeds: int,
    by_element: Curves,
    by_rows: Curves,
    tied: tuple[str, ...],
    found: NeverSupported,
    plan: gt.Plan,
    facts: Mapping[str, Any],
    tables: Mapping[str, Table],
    pictures: Mapping[str, bytes],
) -> Page:
    """The page; `facts` maps model -> its figures, `tables` and `pictures` are by section."""
    dense, decomposed = facts["dense"], facts["decomposed"]
    key = [k for k in dense if k.startswith("latency")][-1]
    speed = dense[key]["median"] / decomposed[key]["median"]
    middle = by_element.spread(next(iter(by_element.values)))[0][1]

    def section(title: str, name: str, words: list[str], alt: str = "") -> Section:
        pictured = (Picture(pictures[name], alt),) if alt else ()
        return Section(title, tuple(words), pictured, (tables[name],))

    return Page(
        title="What the digits taught, and what of it is needed",
        summary=SUMMARY.format(seeds=seeds),
        facts=(
            ("dense accuracy, median", f"{middle:.1%}"),
            ("never supported", f"{found.share:.1%}"),
            ("decomposed accuracy", f"{decomposed['accuracy']:.1%} (dense {dense['accuracy']:.1%})"),
            (f"speed, {key.removeprefix('latency at ')}", f"{speed:.2f}x"),
            ("parameters", f"{decomposed['parameters'] / dense['parameters']:.0%} of dense"),
        ),
        sections=(
            section(
                "Which criterion keeps the right dependencies",
                "quality",
                [ONE_SHOT, *verdict_lines(by_element), *tied],
                "Accuracy over density, one line a criterion; the table below has the numbers.",
            ),
            section(
                "The same where the structure must run fast",
                "rows",
                [ROWS, *verdict_lines(by_rows)],
                "Accuracy over density for row groups, one line a criterion; the table has the numbers.",
            ),
            section("Never supported", "never", [NEVER]),
            section(
                "Do the criteria agree?",
                "agreement",
                [AGREE],
                "Matrix of the agreement of criteria, chance level in brackets; the table has the numbers.",
            ),
            section(
                "The structure, before and after",
                "structure",
                [STRUCTURE, *plan_lines(plan)],
                "The masks of every layer, before and after reordering into sub-operators.",
            ),
            section(
                "Dense beside decomposed",
                "latency",
                [BESIDE],
                "Bars: median milliseconds a batch, per model; the table has the numbers.",
            ),
        ),
        footer=f"gradtrace {gt.__version__}, torch {torch.__version__}. All figures are in compare.json.",
    )

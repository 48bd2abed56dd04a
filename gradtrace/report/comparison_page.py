"""A comparison as sections of a page, and as a page of its own."""

from __future__ import annotations

from collections.abc import Sequence

from gradtrace import __version__
from gradtrace.comparison.comparison import Comparison
from gradtrace.comparison.summary import area_lines, best_lines, control_lines, left_out_lines, shown_density
from gradtrace.evidence.growth import Growth
from gradtrace.evidence.span_shares import SpanShares
from gradtrace.evidence.undertrained import RowUse
from gradtrace.report.agreement_plot import agreement_plot
from gradtrace.report.area_plot import area_plot
from gradtrace.report.comparison_tables import (
    area_table,
    collapse_lines,
    cost_table,
    decomposition_table,
    layers_table,
    quality_table,
)
from gradtrace.report.cost_plot import cost_plot
from gradtrace.report.decomposition_plot import decomposition_plot
from gradtrace.report.growth_plot import growth_plot
from gradtrace.report.layers_plot import layers_plot
from gradtrace.report.learned_tables import growth_table, span_table
from gradtrace.report.page import Page, Picture, Section
from gradtrace.report.quality_plot import quality_plot
from gradtrace.report.tables import agreement_table
from gradtrace.report.undertrained_section import undertrained_section

__all__ = [
    "agreement_section",
    "comparison_page",
    "comparison_sections",
    "cost_section",
    "growth_section",
    "quality_section",
    "structure_section",
]


def comparison_page(
    comparison: Comparison,
    growth: tuple[Growth, SpanShares] | None = None,
    *,
    tokens: Sequence[RowUse] = (),
    ylabel: str = "quality",
    warnings: tuple[str, ...] = (),
    json_name: str = "",
) -> Page:
    """The page of a comparison; `growth` is of one of its runs, `json_name` the file with the figures.

    `tokens`: how much the rows of that run's embeddings were used. `warnings`: what decoys say of the tests'
    null in these runs.
    """
    runs = len(comparison.runs)
    facts = [("runs", f"{runs}"), ("criteria beside controls", f"{_plain(comparison)}")]
    if comparison.has_quality:
        dense = comparison.dense
        half = "" if dense.half is None else f" \N{PLUS-MINUS SIGN} {dense.half:.3f}"
        facts.append((f"{ylabel}, weights as they are", f"{dense.mean:.3f}{half}"))
        if comparison.reference:
            facts.append(("best statistic-based", comparison.reference))
    sections = comparison_sections(comparison, ylabel=ylabel)
    if warnings:
        words = "Decoys, recorded beside the gradients, show what the tests say where nothing can be learned."
        sections = (Section("Is the null right?", (words,), findings=warnings), *sections)
    if growth is not None:
        sections += (growth_section(*growth),)
    if tokens:
        sections += (undertrained_section(tokens),)
    behind = f" All figures are in {json_name}." if json_name else ""
    return Page(
        title="Which criterion keeps the right weights?",
        summary=f"{runs} {'run' if runs == 1 else 'runs'}, one shot: each criterion keeps the share of the "
        "weights that it scores best, the rest is zeroed, nothing is trained afterwards.",
        facts=tuple(facts),
        sections=sections,
        footer=f"gradtrace {__version__}; scope {comparison.scope}, "
        f"granularity {comparison.granularity}.{behind}",
    )


def comparison_sections(comparison: Comparison, *, ylabel: str = "quality") -> tuple[Section, ...]:
    """Quality where it was measured, then agreement, structure and cost."""
    quality = quality_section(comparison, ylabel=ylabel) if comparison.has_quality else ()
    return (
        *quality,
        agreement_section(comparison),
        structure_section(comparison),
        cost_section(comparison),
    )


def quality_section(
    comparison: Comparison, *, ylabel: str = "quality", title: str = "Quality by density"
) -> tuple[Section, Section]:
    """The curves, and the areas between them."""
    several = len(comparison.runs) > 1
    band = "bars are 95% intervals of the mean (Student's t)" if several else "one run, so no interval"
    curves = Section(
        title,
        (
            "Higher is better. The controls are what every criterion has to beat: random scores, and another "
            "criterion's scores shuffled within each layer.",
        ),
        (
            Picture(
                quality_plot(comparison, ylabel=ylabel),
                f"{ylabel} over density, one line a criterion; the table below has the figures.",
                f"Mean over the runs; {band}. Solid: ledger-based; dash-dotted: from final weights; "
                "grey: controls.",
            ),
        ),
        (quality_table(comparison, title=title),),
        (*best_lines(comparison), *_lots(comparison), *left_out_lines(comparison)),
    )
    areas = Section(
        "Area between the curves",
        ("One number a criterion over all densities, paired by run, so that what the runs share cancels.",),
        (
            Picture(
                area_plot(comparison),
                "A point a criterion with its interval, beside the best statistic and beside the controls.",
                "Right of the line: better. Where a bar crosses the line, these runs cannot tell them apart.",
            ),
        ),
        (area_table(comparison),),
        (*area_lines(comparison), *control_lines(comparison)),
    )
    return curves, areas


def agreement_section(comparison: Comparison) -> Section:
    """The matrix at the density nearest to 0.3."""
    k = shown_density(comparison)
    found = comparison.agreement(k)
    density = comparison.densities[k]
    return Section(
        "Do the criteria agree?",
        (
            f"Two masks at density {density:g} agree as far as they keep the same weights. Two random masks "
            "of the same sizes agree a little too: that level stands in brackets.",
        ),
        (
            Picture(
                agreement_plot(found),
                "Matrix of the agreement of each two criteria, chance level in brackets.",
                "1 means that two criteria keep the same weights. Averaged over the runs.",
            ),
        ),
        (agreement_table(found, title=f"Agreement at density {density:g}"),),
    )


def structure_section(comparison: Comparison) -> Section:
    """Components, cut and layers."""
    last = min(range(len(comparison.densities)), key=lambda k: comparison.densities[k])
    # Elsewhere every layer keeps the same share, and a table would repeat it.
    layers = (layers_table(comparison, last),) if comparison.scope == "global" else ()
    pictures = [
        Picture(
            decomposition_plot(comparison),
            "Components, share of edges in the largest one and across the best cut, over density.",
            "Left: pieces that share no input and no output. Middle: near 1, one giant piece is left. "
            "Right: edges between the best two halves; the controls show what it finds without blocks.",
        )
    ]
    if comparison.scope == "global":
        pictures.append(
            Picture(
                layers_plot(comparison, last),
                f"Share of each layer that each criterion keeps at density {comparison.densities[last]:g}.",
                "A cross marks a layer that has no connection left in some run.",
            )
        )
    return Section(
        "Do the masks fall apart?",
        (
            "A layer decomposes exactly where its kept weights fall into components that share no input and "
            "no output. A few false edges glue all blocks into one.",
        ),
        tuple(pictures),
        (decomposition_table(comparison, last), *layers),
        collapse_lines(comparison),
    )


def cost_section(comparison: Comparison) -> Section:
    """Time, memory and data of each criterion."""
    return Section(
        "What each criterion costs",
        (),
        (
            Picture(
                cost_plot(comparison), "Bars: seconds and peak megabytes of scoring, one a criterion.", ""
            ),
        ),
        (cost_table(comparison),),
    )


def growth_section(growth: Growth, spans: SpanShares) -> Section:
    """How support grew in one run, and where it ended."""
    return Section(
        "How support grew",
        (
            "The same questions at every entry's end of the first run: which weights had an event so far, "
            "which are confirmed to have drifted, and which had their last event already.",
        ),
        (
            Picture(
                growth_plot(growth, spans),
                "Shares of each parameter's weights supported, confirmed and supported for the last time.",
                "One panel a parameter, the same axes in each.",
            ),
        ),
        (growth_table(growth), span_table(spans)),
    )


def _plain(comparison: Comparison) -> int:
    return sum(one.kind != "control" for one in comparison.contenders)


def _lots(comparison: Comparison) -> tuple[str, ...]:
    k = shown_density(comparison)
    shares = {name: max(run.ties[name][k] for run in comparison.runs) for name in comparison.names}
    return tuple(
        f"Of what {name} keeps at density {comparison.densities[k]:g}, up to {share:.0%} ties with something "
        "dropped: there the lot decided, not the criterion."
        for name, share in shares.items()
        if share > 0.01
    )

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gradtrace.comparison.comparison import Comparison
from gradtrace.comparison.contender import Contender
from gradtrace.comparison.cost import Cost
from gradtrace.comparison.layer_shape import layer_shape
from gradtrace.comparison.run import Run
from gradtrace.evidence.agreement import Agreement
from gradtrace.evidence.growth import Growth
from gradtrace.evidence.span_shares import SpanShares
from gradtrace.report.area_plot import area_plot
from gradtrace.report.comparison_page import comparison_page
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
from gradtrace.report.learned_tables import span_table
from gradtrace.report.overview import overview
from gradtrace.report.page import render
from gradtrace.report.quality_plot import quality_plot
from gradtrace.report.table import Table
from gradtrace.structure.plan import LayerPlan, Plan

NASTY = "<script>alert('&')</script> [bold]$x_{$"
NAMES = (NASTY, "magnitude", "random")
QUALITY = {
    NASTY: ((0.9, 0.8), (0.8, 0.8)),
    "magnitude": ((0.7, 0.3), (0.6, 0.3)),
    "random": ((0.1, 0.2),) * 2,
}


def a_comparison(runs: int = 2, scope: str = "layer", *, quality: bool = True) -> Comparison:
    ones = tuple((1.0,) * 3 for _ in NAMES)
    full, gone = layer_shape(np.ones((4, 4), np.bool_)), layer_shape(np.zeros((4, 4), np.bool_))
    blocks = layer_shape(np.eye(4, dtype=np.bool_))
    shapes: dict[str, Any] = {NASTY: (full, blocks), "magnitude": (full, gone), "random": (full, full)}
    each = tuple(
        Run(
            ledger=f"{k}",
            run_id=f"{k}",
            steps=3,
            dense=0.95 if quality else None,
            quality={name: values[k] for name, values in QUALITY.items()} if quality else {},
            agreement=(Agreement(NAMES, ones, ones),) * 2,
            layers={n: tuple({NASTY: a, "head": full} for a in shapes[n]) for n in NAMES},
            ties={NASTY: (0.5, 0.5), "magnitude": (0.0, 0.0), "random": (0.0, 0.0)},
            cost={n: Cost(0.25, 3_000_000, ("events", "final weights") * (n != "random")) for n in NAMES},
            left_out={"wanda": "needs the inputs"},
        )
        for k in range(runs)
    )
    kinds = ("ledger", "statistic", "control")
    contenders = tuple(Contender(name, kind) for name, kind in zip(NAMES, kinds, strict=True))
    return Comparison((0.5, 0.1), scope, "element", contenders, each)


GROWTH = Growth(
    0.1,
    (4, 8, 10),
    {NASTY: 8, "w": 4},
    {NASTY: (0.1, 0.2, 0.5), "w": (1.0,) * 3},
    {NASTY: (None, 0.0, 0.1), "w": (None, 0.5, 0.5)},
)
SPANS = SpanShares(
    (4, 8, 10),
    {NASTY: 8, "w": 4},
    {NASTY: (0.25, 0.125, 0.125), "w": (1.0, 0.0, 0.0)},
    {NASTY: (0.25, 0.0, 0.25), "w": (0.0, 0.0, 1.0)},
)
PLAN = Plan({"w": LayerPlan("dense", (), np.ones((3, 2), np.bool_), 2e-4, 2e-4, None, "stays dense")})

PICTURES = {
    "quality": lambda: quality_plot(a_comparison(), ylabel=NASTY),
    "quality of one run": lambda: quality_plot(a_comparison(1)),
    "overview": lambda: overview(a_comparison(), a_comparison(), PLAN, ylabel=NASTY),
    "area": lambda: area_plot(a_comparison()),
    "area of one run": lambda: area_plot(a_comparison(1)),
    "decomposition": lambda: decomposition_plot(a_comparison()),
    "layers": lambda: layers_plot(a_comparison(), 1),
    "cost": lambda: cost_plot(a_comparison()),
    "growth": lambda: growth_plot(GROWTH, SPANS),
    "growth alone": lambda: growth_plot(GROWTH),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_png_with_something_on_them(name: str) -> None:
    image = Image.open(io.BytesIO(PICTURES[name]()))
    image.load()
    assert image.format == "PNG"
    assert min(image.size) >= 150
    assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html() -> str:
    return render(comparison_page(a_comparison(2, "global"), (GROWTH, SPANS), json_name="c.json"))


def test_the_page_is_whole_and_asks_nothing_of_the_outside(html: str) -> None:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert not re.search(r"https?://|url\(|@import", html)
    links = [attrs.get("src") or attrs.get("href") or "" for _, attrs in reader.tags]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links if link)
    assert {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "form"} == set()


def test_every_picture_has_words_and_every_section_a_table(html: str) -> None:
    reader = Reader()
    reader.feed(html)
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(images) == 7  # curves, areas, agreement, components, layers, cost, growth
    assert all(image["alt"] for image in images)
    assert len([1 for tag, _ in reader.tags if tag == "section"]) == 6
    assert len([1 for tag, _ in reader.tags if tag == "table"]) == 8
    assert "All figures are in c.json" in html
    assert "wanda is left out: needs the inputs." in html


@pytest.mark.parametrize("runs", [1, 2])
def test_without_a_quality_the_rest_is_shown(runs: int) -> None:
    told = render(comparison_page(a_comparison(runs, quality=False)))
    assert "Quality by density" not in told
    assert "Do the criteria agree?" in told


def test_of_one_run_the_page_says_that_there_is_no_interval() -> None:
    told = render(comparison_page(a_comparison(1)))
    assert "One run: no interval is known." in told
    assert "\N{PLUS-MINUS SIGN}" not in told


def row(table: Table, name: str) -> tuple[str, ...]:
    return next(cells for cells in table.rows if cells[0] == name)


def test_figures_in_the_tables_are_means_and_half_intervals() -> None:
    found = a_comparison()
    # t(0.975, 1) = 12.706; the standard error of 0.7 and 0.6 is 0.05.
    assert row(quality_table(found), "magnitude")[1] == "\N{ALMOST EQUAL TO}.650\N{PLUS-MINUS SIGN}.635"
    assert row(quality_table(found), "magnitude")[2] == ".300\N{PLUS-MINUS SIGN}.000"
    assert "not above the best control" in quality_table(found).note
    assert row(area_table(found), "magnitude")[2:] == ("-", "+0.325 \N{PLUS-MINUS SIGN} 0.318")
    assert row(decomposition_table(found, 1), NASTY)[1:] == (
        "5.0",
        "85%",
        "62%",
        row(decomposition_table(found, 1), NASTY)[4],
    )
    assert row(layers_table(found, 1), "magnitude")[3] == f"{NASTY} (2)"
    assert collapse_lines(found) == (f"With magnitude, {NASTY} collapses from density 0.1 on.",)
    assert row(cost_table(found), "magnitude")[1:] == ("0.25", "3", "events, final weights")
    assert row(cost_table(found), "random")[3] == "nothing"
    assert row(span_table(SPANS), NASTY)[1:] == ("50.0%", "4", "25.0%")


@pytest.mark.parametrize("width", [80, 30])
def test_nothing_of_a_table_is_left_out_on_a_narrow_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    quality_table(a_comparison()).print(console)
    assert isinstance(console.file, io.StringIO)
    assert re.search(r"magnitude +≈.650±.635 +.300±.000", console.file.getvalue())

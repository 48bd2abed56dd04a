from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gradtrace.evidence.agreement import Agreement
from gradtrace.evidence.never_supported import NeverSupported
from gradtrace.report.agreement_plot import agreement_plot
from gradtrace.report.heatmaps import heatmaps
from gradtrace.report.latency_plot import latency_plot
from gradtrace.report.page import Page, Picture, Section, render
from gradtrace.report.reordering import reordered
from gradtrace.report.table import Table
from gradtrace.report.tables import (
    agreement_table,
    never_supported_table,
    plan_lines,
    plan_table,
)
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.row_groups import row_groups
from gradtrace.structure.sub_operator import SubOperator

NASTY = "<script>alert('&')</script> [bold]$x_{$ \x1b[31m"
AGREED = Agreement((NASTY, "init"), ((1.0, 0.5), (0.5, 1.0)), ((1.0, 0.2), (0.2, 1.0)))


def a_plan() -> Plan:
    mask = np.random.default_rng(0).random((12, 9)) < 0.4
    mask[:, 3] = mask[5] = False
    dense = LayerPlan("dense", (), mask, 2e-4, 2e-4, None, "stays dense: nothing is faster")
    groups = LayerPlan("row groups", row_groups(mask, 4), mask, 1e-4, 2e-4, 1.7, "row groups of 4")
    return Plan({NASTY: groups, "head": dense})


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


PICTURES = {
    "agreement": lambda: agreement_plot(AGREED),
    "heatmaps": lambda: heatmaps(a_plan()),
    "latency": lambda: latency_plot(
        {"batch 1": {"dense": 1.0, NASTY: 0.5}, "batch 2": {"dense": 2, NASTY: 1}}
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_png_with_something_on_them(name: str) -> None:
    image = opened(PICTURES[name]())
    assert image.format == "PNG"
    assert min(image.size) >= 150
    assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10


def test_drawing_leaves_no_figure_behind() -> None:
    from matplotlib import _pylab_helpers

    agreement_plot(AGREED)
    assert not _pylab_helpers.Gcf.figs


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(*tables: Table) -> str:
    section = Section(NASTY, (NASTY,), (Picture(agreement_plot(AGREED), NASTY, NASTY),), tables)
    return render(Page(NASTY, NASTY, ((NASTY, "1"),), (section,), NASTY))


def test_the_page_asks_nothing_of_the_outside() -> None:
    html = page_of(agreement_table(AGREED))
    reader = Reader()
    reader.feed(html)
    assert not re.search(r"https?://|url\(|@import", html)
    links = [attrs.get("src") or attrs.get("href") or "" for _, attrs in reader.tags]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links if link)
    assert {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object"} == set()


def test_every_image_is_inline_and_has_words_beside_it() -> None:
    reader = Reader()
    reader.feed(page_of())
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(images) == 1
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/png") for image in images)


def test_names_with_html_in_them_are_shown_and_not_obeyed() -> None:
    html = page_of(agreement_table(AGREED), plan_table(a_plan()))
    assert "<script>" not in html
    reader = Reader()
    reader.feed(html)
    assert any("<script>alert('&')</script>" in text for text in reader.text)


def test_the_page_follows_the_colour_scheme_and_the_width() -> None:
    html = page_of()
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport" content="width=device-width' in html


def test_every_section_has_its_link() -> None:
    reader = Reader()
    reader.feed(page_of())
    targets = {f"#{attrs['id']}" for tag, attrs in reader.tags if tag == "section"}
    assert targets == {attrs["href"] for tag, attrs in reader.tags if tag == "a"} == {"#s1"}


@pytest.mark.parametrize("png", [b"", b"GIF89a", b"<svg>"])
def test_a_picture_must_be_a_png(png: bytes) -> None:
    with pytest.raises(ValueError, match="PNG"):
        Picture(png, "words")


def printed(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    table.print(console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_tables_show_names_without_markup_or_terminal_codes() -> None:
    text = printed(agreement_table(AGREED))
    assert "[bold]" in text
    assert "\x1b" not in text
    assert "0.50/0.20" in text


def test_the_plan_table_shows_predicted_beside_measured_and_refusals() -> None:
    text = printed(plan_table(a_plan()))
    assert "2.00x" in text
    assert "1.70x" in text
    assert plan_lines(a_plan())[1] == "head: stays dense: nothing is faster."


def test_a_ratio_without_a_denominator_is_a_dash() -> None:
    text = printed(never_supported_table(NeverSupported.of({"w": (0, 4)}, {"init": (0, 0)})))
    assert re.search(r"init\s+0\s+0\s+-\s+-", text)


def test_ragged_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Table("t", ("a", "b"), (("1",),))


def test_sub_operators_stand_together_after_reordering() -> None:
    rng = np.random.default_rng(1)
    inputs, outputs = rng.permutation(10), rng.permutation(7)
    mask = np.zeros((7, 10), np.bool_)
    parts = []
    for rows, columns in ((outputs[:3], inputs[:4]), (outputs[3:6], inputs[4:8])):
        mask[np.ix_(rows, columns)] = True
        parts.append(SubOperator(np.sort(columns), np.sort(rows)))
    rows, columns = reordered(mask, parts)
    expected = np.zeros((7, 10), np.bool_)
    expected[:3, :4] = expected[3:6, 4:8] = True
    np.testing.assert_array_equal(mask[np.ix_(rows, columns)], expected)


def test_reordering_without_sub_operators_changes_nothing() -> None:
    rows, columns = reordered(np.ones((3, 5), np.bool_), ())
    assert rows.tolist() == [0, 1, 2]
    assert columns.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_reordering_is_a_permutation_also_where_inputs_are_shared(seed: int) -> None:
    mask = np.random.default_rng(seed).random((13, 17)) < 0.3
    rows, columns = reordered(mask, row_groups(mask, 4))
    assert sorted(rows) == list(range(13))
    assert sorted(columns) == list(range(17))

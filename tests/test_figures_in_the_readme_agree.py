from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from readme_figures import Figures, disagreements, marked, rewritten, shown  # noqa: E402

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("figures", list(marked(README)), ids=lambda one: f"{one.path}:{one.rows}")
def test_every_figure_is_that_of_the_file_it_names(figures: Figures) -> None:
    assert figures.cells
    assert disagreements(figures, ROOT) == []


def test_every_mark_stands_before_a_table_and_names_a_file_and_its_command() -> None:
    found = list(marked(README))
    assert len(found) == README.count("<!-- figures:")
    for figures in found:
        data = json.loads((ROOT / figures.path).read_text())
        script = data["command"].split()[1]
        assert data["command"].startswith("python ")
        assert (ROOT / script).is_file()
        assert script in README
        assert data["machine"]


CRITERIA = {
    "MLP on images": ("criteria_search", "image-mlp"),
    "convolutions on images": ("criteria_search", "image-convolution"),
    "sparse groups of inputs": ("criteria_search", "sparse-groups"),
    "small byte-level transformer": ("criteria_search_small_text", "byte-text-small"),
    "byte-level transformer": ("criteria_search_text", "byte-text"),
    "the same, its embeddings started as torch starts them": (
        "criteria_search_text_large_start",
        "byte-text-large-start",
    ),
    "a sequence classifier, looked at once": ("criteria_judged", "function-home"),
    "a regression on tables, looked at once": ("criteria_judged", "function-table"),
}


@pytest.mark.parametrize("label", CRITERIA)
def test_the_default_criterion_is_as_far_ahead_as_the_search_found(label: str) -> None:
    name, task = CRITERIA[label]
    cells = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["cells"]
    ours = [one for one in cells if (one["task"], one["setting"]) == (task, "fisher-step exponent=0.5")]
    ratios = [f"{1 + one['relative']:.2f}".removeprefix("0") for one in ours]
    assert [one["density"] for one in ours] == [0.5, 0.3, 0.2, 0.1, 0.05]
    assert f"\n| {label} ({ours[0]['seeds']}) | {' | '.join(ratios)} |\n" in README


TABLE = """
<!-- figures: a.json rows=rows name=model columns=right±wide:.1%;taken.median:m.2fms;size:M.1f;n:,d;no:.1f -->

| model | right | taken | weights | texts | no |
|---|---|---|---|---|---|
| dense | 45.2% ± 1.0% | 31.00ms | 22.7 | 1,234 | - |
| ours | 44.9% ± 1.1% | 15.50ms | 12.0 | 12 | - |

Words.
"""
ROWS = [
    {
        "model": "dense",
        "right": 0.4523,
        "wide": 0.01,
        "taken": {"median": 0.031},
        "size": 22.71e6,
        "n": 1234,
        "no": None,
    },
    {
        "model": "ours",
        "right": 0.449,
        "wide": 0.011,
        "taken": {"median": 0.0155},
        "size": 12e6,
        "n": 12,
        "no": None,
    },
]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", "", []),
        ("45.2%", "45.3%", ["dense, right±wide:.1%: 45.3% ± 1.0%, not 45.2% ± 1.0%"]),
        ("15.50ms", "15.5ms", ["ours, taken.median:m.2fms: 15.5ms, not 15.50ms"]),
        ("| ours |", "| theirs |", ["ours, name: theirs, not ours"]),
        (" 22.7 |", "", ["dense: 5 cells, not 6"]),
        ("12.0 | 12", "12.0 | 13", ["ours, n:,d: 13, not 12"]),
    ],
)
def test_a_figure_that_differs_is_told_and_written_anew(
    before: str, after: str, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"rows": ROWS}))
    text = TABLE.replace(before, after) if before else TABLE
    (figures,) = marked(text)
    assert disagreements(figures, tmp_path)[: len(said)] == said
    assert bool(said) == bool(disagreements(figures, tmp_path))
    assert rewritten(text, tmp_path) == TABLE


@pytest.mark.parametrize(
    ("value", "form", "said"),
    [(0.5, "+.1%", "+50.0%"), (1234.6, ",d", "1,235"), ("a", "s", "a"), (2e-7, ".1e", "2.0e-07")],
)
def test_a_format_is_pythons(value: float | str, form: str, said: str) -> None:
    assert shown(value, form) == said

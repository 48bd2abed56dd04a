"""Every kernel compiles, without a GPU, for the GPUs it is meant for, and keeps its values in registers.

Some forms of each; benchmarks/aot.py compiles all of them, and its figures say what they take.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from ahead.compiling import usage_of
from ahead.variants import TARGETS, Variant, few_variants, variants

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compile, rather than find what an earlier run compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variant", few_variants(), ids=lambda variant: variant.name)
def test_a_kernel_compiles_and_spills_nothing(variant: Variant, target: str) -> None:
    try:
        usage = usage_of(variant, TARGETS[target])
    except LookupError as error:
        pytest.skip(str(error))
    assert usage.registers > 0
    assert usage.spilled == 0


def test_the_figures_of_all_forms_are_there_and_none_spills() -> None:
    """What was compiled is what is there to compile: a form that is new has to be compiled first."""
    figures = json.loads((RESULTS / "aot.json").read_text())
    rows = {row.pop("kernel"): row for row in figures["rows"]}
    assert list(rows) == [variant.name for variant in variants()]
    assert all(list(row) == list(TARGETS) for row in rows.values())
    assert not [(name, row) for name, row in rows.items() if any(one["spilled"] for one in row.values())]

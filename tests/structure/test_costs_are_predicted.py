"""The cost table: validated numbers, a prediction that interpolates them, JSON that gives them back."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrace.errors import InvalidValueError
from gradtrace.structure.cost import CostTable
from gradtrace.structure.sub_operator import SubOperator

SIZES = (16, 64, 256, 1024)
SECONDS = 1e-10  # per weight: a device whose time is exactly proportional to the work
TABLE = CostTable(
    tokens=100,
    inputs=SIZES,
    outputs=SIZES,
    gemm=tuple(tuple(SECONDS * k * n for n in SIZES) for k in SIZES),
    gather=1e-9,
    scatter=2e-9,
    fill=3e-9,
    per_sub_operator=1e-5,
    per_call=1e-4,
)


@pytest.mark.parametrize("inputs", [16, 17, 100, 1024, 5000])
@pytest.mark.parametrize("outputs", [16, 99, 4096])
def test_a_power_law_is_predicted_exactly_between_and_above_the_measured_sizes(
    inputs: int, outputs: int
) -> None:
    assert TABLE.predict_dense(inputs, outputs) == pytest.approx(SECONDS * inputs * outputs, rel=1e-9)


def test_below_the_measured_sizes_a_product_costs_what_the_smallest_does() -> None:
    assert TABLE.predict_dense(1, 64) == pytest.approx(TABLE.predict_dense(16, 64))


def test_sub_operators_cost_their_products_elements_and_fixed_parts() -> None:
    parts = (
        SubOperator(np.arange(64), np.arange(16)),
        SubOperator(np.arange(256), np.arange(16, 80)),
    )
    floor = SECONDS * 16 * 16
    products = SECONDS * (64 * 16 + 256 * 64) - 2 * floor
    elements = 100 * ((64 + 256) * 1e-9 + (16 + 64) * 2e-9 + 200 * 3e-9)
    assert TABLE.predict_sub_operators(parts, 300, 200) == pytest.approx(1e-4 + 2e-5 + products + elements)
    turned = replace(TABLE, turn=4e-9).predict_sub_operators(parts, 300, 200)
    assert turned == pytest.approx(1e-4 + 2e-5 + products + elements + 100 * 300 * 4e-9)


def test_no_sub_operator_still_costs_the_call_and_the_output() -> None:
    assert TABLE.predict_sub_operators((), 300, 200) == pytest.approx(1e-4 + 100 * 200 * 3e-9)


@pytest.mark.parametrize(
    ("weights", "rate"), [(1, 1e-9), (100, 1e-9), (1000, 2e-9), (10_000, 3e-9), (40_000, 3e-9)]
)
def test_where_one_call_multiplies_all_a_weight_costs_by_how_many_there_are(
    weights: int, rate: float
) -> None:
    rated = CostTable(1, SIZES, SIZES, TABLE.gemm, weights=(100, 10_000), rates=(1e-9, 3e-9))
    parts = [SubOperator(np.arange(1), np.arange(1)) for _ in range(weights)]
    assert rated.predict_sub_operators(parts, 9, 9) == pytest.approx(rate * weights)


@given(
    gemm=st.lists(st.floats(1e-9, 1e3), min_size=6, max_size=6),
    rest=st.lists(st.floats(0, 1e3), min_size=6, max_size=6),
    rates=st.one_of(st.just(()), st.tuples(st.floats(0, 1e3), st.floats(0, 1e3))),
)
def test_json_gives_the_same_table_back(
    gemm: list[float], rest: list[float], rates: tuple[float, ...]
) -> None:
    rows = (tuple(gemm[:3]), tuple(gemm[3:]))
    gather, scatter, fill, each, call, turn = rest
    weights = (8, 16)[: len(rates)]
    table = CostTable(7, (1, 5), (2, 3, 4), rows, gather, scatter, fill, each, call, turn, weights, rates)
    assert CostTable.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 0),
        ("tokens", 1.5),
        ("tokens", True),
        ("inputs", (16,)),
        ("inputs", (64, 16, 256, 1024)),
        ("outputs", (0, 64, 256, 1024)),
        ("outputs", "abcd"),
        ("gemm", TABLE.gemm[:3]),
        ("gemm", (*TABLE.gemm[:3], (1.0,))),
        ("gemm", (*TABLE.gemm[:3], (1.0, 1.0, 1.0, 0.0))),
        ("gemm", (*TABLE.gemm[:3], (1.0, 1.0, 1.0, float("nan")))),
        ("gemm", 3.0),
        ("gather", -1e-9),
        ("gather", float("inf")),
        ("gather", 10**400),
        ("scatter", "fast"),
        ("fill", True),
        ("per_call", None),
        ("turn", -1.0),
        ("rates", (1e-9, 2e-9)),
        ("rates", 1e-9),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidValueError, match=f"cost table: {field}"):
        replace(TABLE, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"tokens": 1}',
        "[" * 100_000,
        json.dumps({**asdict(TABLE), "more": 1}),
        json.dumps({**asdict(TABLE), "gather": float("nan")}),
    ],
    ids=["empty", "a list", "no field", "one field", "too deep", "a field too many", "NaN"],
)
def test_a_table_of_a_stranger_is_refused_in_words(text: str) -> None:
    with pytest.raises(InvalidValueError, match="cost table"):
        CostTable.from_json(text)

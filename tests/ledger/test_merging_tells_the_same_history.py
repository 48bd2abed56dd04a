from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gradtrace.ledger.details import check_details, joined, updates_of
from gradtrace.ledger.merged_details import merged_details

PARAMETERS = 3
RUNS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([{"lr": 0.1}, {"lr": 0.2}, {}])).map(list), max_size=3
)
GROUPS = st.fixed_dictionaries(
    {
        "optimizer": st.integers(0, 1),
        "kind": st.just("SGD"),
        "parameters": st.sampled_from([[0, 1], [1], [1, 2], []]),
        "runs": RUNS,
    }
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(GROUPS, max_size=4), min_size=1, max_size=5))
def test_every_parameter_keeps_its_updates_in_their_order(entries: list[list[dict[str, Any]]]) -> None:
    parts = [{"groups": groups} if groups else {} for groups in entries]
    merged = merged_details(parts)
    check_details(merged, PARAMETERS)
    assert len(merged.get("groups", [])) <= sum(map(len, entries))
    for parameter in range(PARAMETERS):
        before = joined(update for part in parts for update in updates_of(part, parameter))
        assert joined(updates_of(merged, parameter)) == before

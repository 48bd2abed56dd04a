from __future__ import annotations

import json
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.evidence.never_supported import NeverSupported, never_supported, smallest
from gradtrace.ledger.reader import Ledger


def ledger_of(**events: list[list[int]]) -> Ledger:
    return cast(Ledger, {name: SimpleNamespace(events=np.array(e)) for name, e in events.items()})


def test_recall_and_precision_count_over_all_parameters() -> None:
    ledger = ledger_of(u=[[0, 1, 5], [0, 0, 2]], v=[[0, 9]])
    calls = {"u": np.array([[1, 1, 0], [1, 0, 0]], np.bool_), "v": np.array([[1, 1]], np.bool_)}
    found = never_supported(ledger, ("u", "v"), {"guess": calls})
    assert (found.dependencies, found.never, found.layers) == (8, 4, {"u": (3, 6), "v": (1, 2)})
    (guess,) = found.detections
    assert (guess.found, guess.right, guess.recall, guess.precision) == (5, 3, 3 / 4, 3 / 5)


def test_without_calls_or_without_truth_there_is_no_ratio() -> None:
    none = {"u": np.zeros((1, 2), np.bool_)}
    (silent,) = never_supported(ledger_of(u=[[0, 1]]), ("u",), {"silent": none}).detections
    assert (silent.recall, silent.precision) == (0.0, None)
    full = {"u": np.ones((1, 2), np.bool_)}
    (loud,) = never_supported(ledger_of(u=[[3, 1]]), ("u",), {"loud": full}).detections
    assert (loud.recall, loud.precision) == (None, 0.0)


def test_counts_of_several_runs_add_up() -> None:
    first = NeverSupported.of({"u": (1, 4)}, {"guess": (2, 1)})
    second = NeverSupported.of({"u": (3, 4)}, {"guess": (4, 2)})
    both = NeverSupported.together([first, second])
    assert both == NeverSupported.of({"u": (4, 8)}, {"guess": (6, 3)})
    assert json.loads(json.dumps(both.to_json(), allow_nan=False))["share"] == 0.5


def test_a_candidate_of_another_shape_or_no_parameters_is_refused() -> None:
    with pytest.raises(MismatchError, match="guess"):
        never_supported(ledger_of(u=[[0, 1]]), ("u",), {"guess": {"u": np.zeros((2, 1), np.bool_)}})
    with pytest.raises(InvalidValueError):
        never_supported(ledger_of(u=[[0, 1]]), (), {})


def test_smallest_takes_exactly_as_many_and_the_first_of_equals() -> None:
    found = smallest({"u": np.array([[3.0, 1.0], [1.0, 0.0]]), "v": np.ones((1, 2))}, {"u": 2, "v": 0})
    np.testing.assert_array_equal(found["u"], [[False, True], [False, True]])
    assert not found["v"].any()

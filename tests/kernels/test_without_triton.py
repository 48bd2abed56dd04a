"""The kernels import and run where there is no Triton, and take no name that is not theirs."""

from __future__ import annotations

import subprocess
import sys
import textwrap

CALLS = """
import torch
from gradtrace.kernels.accumulate import EVENT, SEEN, Totals, accumulate_
from gradtrace.kernels.routed_linear import routed_linear

totals = Totals(torch.zeros(3), torch.zeros(3), *(torch.zeros(3, dtype=torch.int16) for _ in "ab"))
flags = torch.zeros(1, dtype=torch.int32)
accumulate_(totals, flags, [torch.tensor([2.0, 0.0, -1.0])], [0], [0])
assert totals.votes.tolist() == [1, 0, -1] and flags.tolist() == [SEEN | EVENT]
y = routed_linear(
    torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([10.0, 100.0]), None,
    torch.tensor([2, 0]), torch.tensor([1]), [2], [1], 2,
)
assert y.tolist() == [[0.0, 130.0]]
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_both_kernels_import_and_run_without_triton() -> None:
    run("import sys\nsys.modules['triton'] = None\n" + CALLS)


def test_importing_the_kernels_leaves_no_top_level_module_of_that_name() -> None:
    run("import sys\nimport gradtrace.kernels\n" + CALLS + "assert 'kernels' not in sys.modules")


def test_importing_the_library_imports_neither_the_kernels_nor_triton() -> None:
    run("import sys, gradtrace\nassert not {'triton', 'gradtrace.kernels'} & sys.modules.keys()")

"""Runs the numerical tests of every kernel under Triton's interpreter, each file in a process of its own.

The interpreter is chosen when a kernel is defined, so it cannot share a process with the ahead-of-time tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize(
    "name", ["test_accumulate_sums.py", "test_routed_sums.py", "test_routed_mlp_sums.py"]
)
def test_interpreted_kernels_pass_every_numerical_test(name: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent / name),
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-4000:]
    assert int(passed[1]) > 90
    assert "skipped" not in done.stdout.splitlines()[-1]

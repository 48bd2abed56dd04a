from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["reader", "writer"])
def test_reading_and_writing_need_neither_torch_nor_lightning_nor_triton(module: str) -> None:
    heavy = {"torch", "lightning", "triton"}
    script = f"import sys, gradtrace.ledger.{module}; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"

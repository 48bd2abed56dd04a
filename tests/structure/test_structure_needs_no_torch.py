"""Planning works on plain arrays: a machine without torch can read and make plans."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_planner_and_the_plan_file_imports_no_torch() -> None:
    modules = "gradtrace.structure.planner, gradtrace.structure.plan_file"
    script = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)

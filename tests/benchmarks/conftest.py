from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# As for whoever runs a benchmark: its folder is where its modules are found.
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "recipes")]

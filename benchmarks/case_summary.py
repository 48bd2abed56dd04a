"""What the case studies say together: what was learned and can go, and how far `estimate` was off.

Reads what recipes/case_minilm.py, case_language.py and case_mnist.py wrote; measures nothing.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

import gradtrace as gt
from gradtrace.errors import UnreadableFileError
from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.table import Table
from gradtrace.report.terminal import terminal

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CASES = ("minilm", "language", "mnist")
TIME, POINTS = 0.2, 0.015
"""What an estimate may be off: a share of the measured time, and of the dense model's quality."""


def summary(data: dict[str, Any]) -> dict[str, Any]:
    """One case study's row: means over its seeds, and its estimate beside what was measured."""
    learned, estimate = data["learned"], data["estimate"]
    unknown = any(one["not_confirmed"] is None for one in learned)
    off = abs(estimate["quality_error"]) / abs(estimate["dense_quality"])
    return {
        "case": data["case"],
        "seeds": len(learned),
        "never_supported": fmean(one["never_supported"] for one in learned),
        "not_confirmed": None if unknown else fmean(one["not_confirmed"] for one in learned),
        "removable": fmean(one["removable"] for one in learned),
        "source": learned[0]["source"],
        "estimate": estimate | {"quality_off": off},
        "time_within": abs(estimate["time_error"]) <= TIME,
        "quality_within": off <= POINTS,
    }


def main(
    results: Annotated[Path, typer.Option(help="Where the case studies' files are.")] = RESULTS,
    out: Annotated[Path, typer.Option(help="Where the summary goes.")] = RESULTS / "case_summary.json",
) -> None:
    """Put the case studies' figures side by side."""
    cases = {}
    for name in CASES:
        path = results / f"case_{name}.json"
        try:
            cases[name] = json.loads(path.read_text())
        except OSError as error:
            raise UnreadableFileError(
                f"{path}", got=str(error), remedy=f"run python recipes/case_{name}.py first"
            ) from error
    rows = [summary(one) for one in cases.values()]
    shares = ("never_supported", "not_confirmed", "removable", "source")
    cells = tuple(
        (row["case"], *("-" if row[one] is None else f"{row[one]:.1%}" for one in shares)) for row in rows
    )
    columns = ("model", "never supported", "not confirmed", "removable at 1%", "the source")
    Table("What was learned, and what can go", columns, cells).print(terminal())
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {name: one["machine"] for name, one in cases.items()},
        "dates": {name: one["date"] for name, one in cases.items()},
        "time_bound": TIME,
        "quality_bound": POINTS,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), "results")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")

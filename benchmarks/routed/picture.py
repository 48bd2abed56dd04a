"""The picture: for every setting the speed over dense of each case, beside the ideal and the peers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["draw"]

_MARKS = (("o", "tab:blue"), ("s", "tab:orange"), ("^", "tab:green"))
_PEERS = {"torch BSR": ("x", "0.35"), "torch CSR": ("+", "0.6"), "bmm": ("1", "tab:red")}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write small multiples, tokens across and threads down."""
    rows = [row for row in rows if row["in_grid"]]
    tokens, threads = (sorted({row[what] for row in rows}) for what in ("tokens", "threads"))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    shapes = dict.fromkeys((row["inputs"], row["outputs"]) for row in rows)
    marks = dict(zip(shapes, cycle(_MARKS), strict=False))
    figure = Figure(figsize=(4.2 * len(tokens), 3.4 * len(threads)), layout="constrained")
    grid = figure.subplots(len(threads), len(tokens), sharex=True, sharey=True, squeeze=False)
    for line, count in zip(grid, threads, strict=True):
        for axes, batch in zip(line, tokens, strict=True):
            axes.set_title(f"{batch} tokens, {count} {'thread' if count == 1 else 'threads'}", fontsize=9)
            axes.axhline(1, color="0.8", linewidth=0.8)
            axes.set_yscale("log")
            axes.set_xticks(range(len(cases)), cases, rotation=60, ha="right", fontsize=7)
            for row in rows:
                if (row["threads"], row["tokens"]) != (count, batch):
                    continue
                at = cases.index(row["case"])
                axes.hlines(1 / row["density"], at - 0.4, at + 0.4, color="black", linewidth=1)
                for peer, (mark, colour) in _PEERS.items():
                    if peer in row["seconds"]:
                        speed = row["seconds"]["dense"]["median"] / row["seconds"][peer]["median"]
                        axes.plot(at + 0.25, speed, mark, color=colour, markersize=5)
                mark, colour = marks[row["inputs"], row["outputs"]]
                fill = colour if row["counted"] else "none"
                axes.plot(at - 0.1, row["speed"], mark, color=colour, markerfacecolor=fill, markersize=5)
    for label in (line[0] for line in grid):
        label.set_ylabel("speed over dense", fontsize=8)
    axes = grid[0][0]
    for (inputs, outputs), (mark, colour) in marks.items():
        axes.plot([], [], mark, color=colour, label=f"{inputs} to {outputs}")
    for peer, (mark, colour) in _PEERS.items():
        axes.plot([], [], mark, color=colour, label=peer)
    axes.plot([], [], "_", color="black", label="1 / density")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)

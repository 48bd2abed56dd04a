"""What the rows say, beside the aims."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

__all__ = ["judged"]

Row = dict[str, Any]
WORTH, LOST = 1.2, 1.0
SHARE, ERROR, AHEAD = 0.80, 0.15, 10.0


def judged(rows: Sequence[Row]) -> list[str]:
    """One line for each aim: what was found over the grid, and whether the aim is met."""
    grid = [row for row in rows if row["in_grid"] and row["counted"]]
    lines = [f"{len(grid)} cases count, whose dense layer takes 50 operator calls or more."]
    if not grid:
        return lines
    shares = [row["share"] for row in grid]
    lines.append(
        f"Speed over dense as a share of 1/density: median {median(shares):.2f}, least {min(shares):.2f}"
        f"{_said(median(shares) >= SHARE, f'{SHARE:.2f} in the median')}"
    )
    for what, chosen in (("tokens", (1, 16, 512)), ("threads", (1, 2))):
        parts = [(value, [row["share"] for row in grid if row[what] == value]) for value in chosen]
        found = [f"{value} {what}: {_spread(part)}" for value, part in parts if part]
        lines.append("  " + "; ".join(found))
    slower = [row for row in grid if row["speed"] < LOST]
    faster = [row for row in grid if row["speed"] >= WORTH]
    accepted = [row for row in slower if row["planner"]["choice"] != "dense"]
    refused = [row for row in faster if row["planner"]["choice"] == "dense"]
    lines.append(
        f"The planner refuses {len(slower) - len(accepted)} of {len(slower)} measured slower than dense and "
        f"accepts {len(faster) - len(refused)} of {len(faster)} measured {WORTH} times faster"
        f"{_said(not accepted and not refused, 'all')}"
    )
    lines += [f"  wrong: {_named(row)}: {row['planner']['reason']}" for row in (*accepted, *refused)]
    errors = [abs(row["predicted"] / row["seconds"]["routed"]["median"] - 1) for row in grid]
    dense = [abs(row["predicted_dense"] / row["seconds"]["dense"]["median"] - 1) for row in grid]
    lines.append(
        f"The planner's predictions are off by {median(errors):.1%} in the median (dense layers: "
        f"{median(dense):.1%}){_said(median(errors) < ERROR, f'below {ERROR:.0%}')}"
    )
    for tokens, aim in ((1, LOST), (16, LOST), (512, AHEAD)):
        found_rows = [row for row in rows if row["in_grid"] and row["tokens"] == tokens]
        ratios = [row["times"]["torch BSR"] for row in found_rows if "torch BSR" in row["times"]]
        if ratios:
            lines.append(
                f"Speed over torch's BSR at {tokens} tokens: median {median(ratios):.1f}x, least "
                f"{min(ratios):.1f}x{_said(min(ratios) >= aim, f'{aim:g}x or more')}"
            )
    for peer in ("bmm", "grouped_mm", "torch CSR", "scipy CSR"):
        ratios = [row["times"][peer] for row in grid if peer in row["times"]]
        if ratios:
            lines.append(f"Speed over {peer}: median {median(ratios):.1f}x, least {min(ratios):.2f}x")
    roofs = [row["roofline"] for row in grid]
    lines.append(f"Share of the roofline: median {median(roofs):.2f}, least {min(roofs):.2f}")
    permuted = [row["share"] for row in rows if not row["in_grid"] and row["counted"]]
    if permuted:
        lines.append(f"Blocks whose permutation is not folded, not in the grid: {_spread(permuted)}")
    return lines


def _spread(shares: Sequence[float]) -> str:
    low, high = quantiles(shares, n=4)[::2] if len(shares) > 1 else (shares[0], shares[0])
    return f"{median(shares):.2f} ({low:.2f} .. {high:.2f})"


def _said(met: bool, aim: str) -> str:
    return f"; the aim is {aim}: {'met' if met else 'MISSED'}."


def _named(row: Row) -> str:
    return (
        f"{row['inputs']} -> {row['outputs']}, {row['case']}, {row['tokens']} tokens, {row['threads']} "
        f"threads, measured {row['speed']:.2f}x dense"
    )

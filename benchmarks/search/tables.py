"""The search as tables: every setting's record, and each task's loss increases."""

from __future__ import annotations

from collections.abc import Sequence

from search.measuring import DENSITIES
from search.regret import ALLOWED, NOISE, Cell, Record

from gradtrace.report.table import Table

__all__ = ["judged_table", "records_table", "task_table"]

SHOWN = 12


def records_table(records: Sequence[Record]) -> Table:
    """The best ledger-based settings, and every statistic and control, over all tasks and densities."""
    ledger = [record for record in records if record.kind == "ledger"]
    shown = [*ledger[:SHOWN], *(record for record in records if record.kind != "ledger")]
    rows = tuple(
        (
            one.setting,
            one.kind,
            f"{one.worst:+.0%}",
            f"{one.middle:+.0%}",
            f"{one.better}/{one.cells}",
            f"{one.holds}/{one.cells}",
        )
        for one in shown
    )
    columns = ("setting", "kind", "worst regret", "median regret", "better", "holds")
    note = (
        "Regret: mean loss increase beyond that of the best statistic-based setting, in shares of its "
        f"increase (or of {NOISE:.0%} of the dense loss, if more), over tasks and densities. "
        f"Holds: the paired 95% bound is at most {ALLOWED:.0%}. Of "
        f"{len(ledger)} ledger-based settings the {min(SHOWN, len(ledger))} with the smallest worst regret."
    )
    return Table("Every task and density together", columns, rows, note)


def task_table(task: str, cells: Sequence[Cell], settings: Sequence[str]) -> Table:
    """Mean loss increase over dense of the settings named, by density; the best statistic is starred."""
    at = {(cell.setting, cell.density): cell for cell in cells if cell.task == task}
    densities = [one for one in DENSITIES if any(density == one for _, density in at)]

    def shown(setting: str, density: float) -> str:
        cell = at.get((setting, density))
        return "-" if cell is None else f"{cell.increase:.3f}" + ("*" if cell.best == setting else " ")

    rows = tuple((one, *(shown(one, density) for density in densities)) for one in settings)
    seeds = next((cell.seeds for cell in at.values()), 0)
    note = f"Mean of {seeds} seeds; * the best statistic-based setting."
    return Table(f"{task}: loss increase over dense", ("setting", *map(str, densities)), rows, note)


def judged_table(setting: str, cells: Sequence[Cell]) -> Table:
    """One setting beside the best statistic-based one of each task and density, and whether it holds."""
    own = [cell for cell in cells if cell.setting == setting]
    rows = tuple(
        (
            cell.task,
            f"{cell.density:g}",
            f"{cell.increase:.4f}",
            f"{cell.best_increase:.4f}",
            cell.best,
            f"{cell.regret:+.4f}",
            f"{cell.bound:+.4f}",
            "yes" if cell.holds else "no",
        )
        for cell in own
    )
    columns = ("task", "density", "increase", "best's", "best statistic", "regret", "bound", "holds")
    holds, better = sum(cell.holds for cell in own), sum(cell.regret < 0 for cell in own)
    note = (
        f"Better in {better} of {len(own)}. The paired 95% bound on its regret is at most {ALLOWED:.0%} of "
        f"the best's increase in {holds} of {len(own)}."
    )
    return Table(f"{setting}, judged", columns, rows, note, prose=("best statistic",))

"""Quality with intervals, latency, throughput, memory, size and cost of each model of a case study."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from case_contenders import DENSE, EQUAL, folder_of
from case_machine import peak_bytes
from numpy.typing import NDArray
from torch import nn

from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.latency import interleaved
from gradtrace.report.table import Table

if TYPE_CHECKING:
    from case_study import Case, Settings

__all__ = ["judged_once", "rows_of", "table"]

BATCHES = (1, 32)


def rows_of(
    case: Case, settings: Settings, found: list[dict[str, nn.Module]], run: Path
) -> list[dict[str, Any]]:
    """One row a model. Times are those of the first seed's models, taken in turns."""
    names = list(found[0])
    folders = [run / f"seed-{seed}" for seed in settings.seeds]
    of_seeds = {
        name: [
            judged_once(case, nets[name], folder, name) for nets, folder in zip(found, folders, strict=True)
        ]
        for name in names
    }
    judged = {name: np.mean(some, 0) for name, some in of_seeds.items()}
    times = {
        size: interleaved(found[0], case.example(size), rounds=settings.rounds * (8 if size == 1 else 1))
        for size in BATCHES
    }
    rows = []
    for name, net in found[0].items():
        rate = BATCHES[-1] * case.each / times[BATCHES[-1]][name].median
        rows.append(
            {
                "model": name,
                "quality": float(judged[name].mean()),
                "quality_of_seeds": [float(one.mean()) for one in of_seeds[name]],
                "quality_half_width": _half_width(judged[name]),
                **_lost(case, judged[DENSE], judged[name]),
                **{f"seconds_at_batch_{size}": asdict(times[size][name]) for size in BATCHES},
                **{
                    f"speed_at_batch_{size}": times[size][DENSE].median / times[size][name].median
                    for size in BATCHES
                },
                "items_per_second": rate,
                "latency_less": 1 - times[1][name].median / times[1][DENSE].median,
                "parameters": sum(one.numel() for one in net.parameters()),
                "peak_bytes": _peak(case, folders[0], name),
                "cost_per_million": settings.price / 3600 * 1e6 / rate,
            }
        )
    return rows


def judged_once(case: Case, net: nn.Module, folder: Path, name: str) -> NDArray[np.float64]:
    """What `case.judged` says, kept beside the model for as long as that does not change."""
    place = folder / folder_of(name)
    stamp = (place / "model.safetensors").stat().st_mtime_ns
    record = folder / f"{folder_of(name)}-judged.json"
    if record.is_file() and (known := json.loads(record.read_text()))["stamp"] == stamp:
        return np.array(known["judged"])
    judged = case.judged(net)
    write_whole(record, json.dumps({"stamp": stamp, "judged": judged.tolist()}).encode(), "figures")
    return judged


def _half_width(values: NDArray[np.float64]) -> float:
    """Half the 95% interval of the mean, for other samples like these."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def _lost(case: Case, dense: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """Quality lost relative to dense, paired by sample."""
    worse = (other - dense) if case.lower_is_better else (dense - other)
    whole = abs(float(dense.mean()))
    return {"lost": float(worse.mean()) / whole, "lost_half_width": _half_width(worse) / whole}


def _peak(case: Case, folder: Path, name: str) -> int | None:
    kind = "equal cost" if name == EQUAL else "dense"
    return peak_bytes(case.fresh, kind, folder / folder_of(name), case.example(BATCHES[-1]))


def table(case: Case, settings: Settings, rows: list[dict[str, Any]]) -> Table:
    """The same for people."""
    cells = tuple(
        (
            row["model"],
            f"{row['quality']:.3f} ± {row['quality_half_width']:.3f}",
            f"{row['lost']:+.1%} ± {row['lost_half_width']:.1%}",
            f"{row['seconds_at_batch_1']['median'] * 1e3:.2f}",
            f"{row['latency_less']:.0%}",
            f"{row['seconds_at_batch_32']['median'] * 1e3:.1f}",
            f"{row['items_per_second']:,.0f}",
            f"{row['speed_at_batch_32']:.2f}x",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['cost_per_million']:.5f}",
        )
        for row in rows
    )
    columns = (
        "model",
        case.measure,
        "lost",
        "ms at batch 1",
        "less",
        "ms at batch 32",
        f"{case.items} a second",
        "speed",
        "peak MB",
        "million parameters",
        f"cost of a million {case.items}",
    )
    note = f"Keeping {settings.density:g}; {settings.price:g} an hour of this machine."
    return Table(case.name, columns, cells, note)

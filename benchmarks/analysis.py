"""How long a large ledger takes to be analysed, and in how much memory, beside reading it.

Reading: every total of every parameter, one parameter at a time. Analysing: `gradtrace.explain` with its
defaults and a density: a score and its mask, a test and what it confirms, and which dependencies ever
had support, for every parameter, as masks. Both in turns on files in the page cache, each in a process of its
own that has gradtrace imported; a ratio is the median over the rounds. Memory is the resident memory of that
process and of all that it started, the largest sum seen, every hundredth of a second; pages that processes
share count in each.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.numpy import save_file

import gradtrace as gt
from gradtrace.ledger.format import ACCUMULATORS, Layout, ParameterInfo
from gradtrace.ledger.writer import LedgerWriter

ROOT = Path(__file__).resolve().parents[1]
TARGET_RATIO, TARGET_BYTES = 3.0, 1_000_000_000
WIDTH = 2048
WINDOWS, LENGTH = 60, 32


def layout_of(size: int) -> Layout:
    """Squares of 2048 x 2048 with biases, and now and then a ragged matrix, to about `size` dependencies."""
    infos: list[ParameterInfo] = []
    left = size
    while left > 0:
        ragged = len(infos) % 10 == 4
        rows, columns = (WIDTH // 2 - 1, WIDTH * 4 // 3 + 1) if ragged else (WIDTH, WIDTH)
        rows = max(2, min(rows, left // columns))
        for role, shape in (("weight", (rows, columns)), ("bias", (rows,))):
            infos.append(
                ParameterInfo(
                    f"layers.{len(infos) // 2}.{role}",
                    shape,
                    "float32",
                    module=f"layers.{len(infos) // 2}",
                    module_class="Linear",
                    role=role,
                    orientation="out,in" if role == "weight" else "",
                )
            )
            left -= math.prod(shape)
    return Layout.whole(infos)


def drawn(size: int) -> dict[str, np.ndarray[Any, Any]]:
    """Sums over 60 windows of 32 steps: one in ten dependencies was learned, one in fifty had few events."""
    random = np.random.default_rng(0)
    few = random.random(size, np.float32) < 0.02
    events = np.where(few, random.integers(0, WINDOWS, size, np.uint32), np.uint32(WINDOWS * LENGTH))
    learned = np.where(random.random(size, np.float32) < 0.1, np.float32(0.8), np.float32(0))
    total = (random.standard_normal(size, np.float32) + learned * np.float32(WINDOWS**0.5)) * np.float32(
        (WINDOWS * LENGTH) ** 0.5
    )
    spread = np.float32(1) + np.float32(0.18) * random.standard_normal(size, np.float32)
    squares = np.maximum(spread * np.float32(WINDOWS * LENGTH), total**2 / np.float32(WINDOWS))
    steps = np.float32(WINDOWS * LENGTH) * (
        np.float32(1) + np.float32(0.03) * random.standard_normal(size, np.float32)
    )
    sums = {"grad_sum": total, "grad_sumsq": steps, "window_sumsq": squares}
    found: dict[str, np.ndarray[Any, Any]] = {
        one: np.where(events > 0, s, np.float32(0)) for one, s in sums.items()
    }
    votes = random.integers(-9, 10, size, np.int32)
    return found | {"events": events, "votes": votes, "window_votes": votes}


def prepare(folder: Path, size: int) -> int:
    """A ledger of one entry, and the weights in a file; returns the dependencies."""
    layout = layout_of(size)
    elements = layout.size(0)
    weights = np.random.default_rng(1).standard_normal(elements, np.float32)
    zeros = [0] * len(layout.parameters)
    count = [WINDOWS * LENGTH] * len(layout.parameters)
    counts = {"steps": count} | dict.fromkeys(("missing", "zero", "nonfinite", "skipped"), zeros)
    with LedgerWriter.create(folder / "ledger", settings={"threshold": 0}) as writer:
        number = writer.add_layout(layout, [weights])
        writer.commit_entry(
            0,
            WINDOWS * LENGTH,
            layout=number,
            windows=WINDOWS,
            arrays=drawn(elements),
            details={"counts": counts},
        )
    tensors = {
        info.name: weights[piece.offset : piece.offset + piece.size].reshape(info.shape)
        for info, piece in zip(layout.parameters, layout.ranks[0], strict=True)
    }
    save_file(tensors, folder / "weights.safetensors")
    return elements


def read(folder: Path) -> None:
    for record in gt.Ledger.open(folder / "ledger").values():
        for name in ACCUMULATORS:
            getattr(record, name)


def analyse(folder: Path) -> None:
    gt.explain(gt.Ledger.open(folder / "ledger"), folder / "weights.safetensors", 0.3)


def analyse_on_threads(folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        gt.explain(gt.Ledger.open(folder / "ledger"), folder / "weights.safetensors", 0.3, executor=pool)


ACTIONS: dict[str, Callable[[Path], None]] = {
    "read": read,
    "analyse": analyse,
    "analyse on 2 threads": analyse_on_threads,
}


def timed(what: str, folder: Path, answer: Connection) -> None:
    """In a process of its own: warm up, say so, wait for the word, work, say how long it took."""
    gt.explain  # noqa: B018  # imports what it needs
    answer.send("ready")
    answer.recv()
    began = time.perf_counter()
    ACTIONS[what](folder)
    answer.send(time.perf_counter() - began)


def resident(process: psutil.Process) -> int:
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.Error:  # ended meanwhile
            continue
    return total


def measured(what: str, folder: Path) -> tuple[float, int]:
    """Seconds, and the most bytes that the processes held together."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=timed, args=(what, folder, theirs))
    process.start()
    ours.recv()
    watched, peaks, over = psutil.Process(process.pid), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            peaks.append(resident(watched))

    watcher = threading.Thread(target=watch)
    watcher.start()
    ours.send("go")
    try:
        seconds = float(ours.recv())
    except EOFError:
        raise SystemExit(f"{what}: its process died") from None
    finally:
        over.set()
        watcher.join()
        process.join()
    return seconds, max(peaks)


def main(
    parameters: Annotated[int, typer.Option(min=10_000, help="Dependencies of the ledger.")] = 100_000_000,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    folder: Annotated[Path | None, typer.Option(help="Where the temporary files go; 2.8 GB.")] = None,
    json_path: Annotated[Path, typer.Option("--json")] = ROOT / "benchmarks" / "results" / "analysis.json",
) -> None:
    """Measure reading and analysing a ledger, and write the figures as JSON."""
    console = Console()
    found: dict[str, list[tuple[float, int]]] = {what: [] for what in ACTIONS}
    with TemporaryDirectory(dir=folder) as temporary, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("writing the ledger", total=1 + (rounds + 1) * len(ACTIONS))
        place = Path(temporary)
        if shutil.disk_usage(place).free < 30 * parameters:
            raise SystemExit(f"{place} has too little room for {28 * parameters:,} bytes: pass --folder")
        elements = prepare(place, parameters)
        bar.advance(task)
        for turn in range(rounds + 1):
            for what in ACTIONS if turn % 2 else reversed(ACTIONS):
                bar.update(task, description=what)
                figures = measured(what, place)
                if turn:  # the first round only brings the files into the page cache
                    found[what].append(figures)
                bar.advance(task)
    reading = [seconds for seconds, _ in found["read"]]
    rows: list[dict[str, Any]] = [
        {
            "what": what,
            "seconds": median(seconds for seconds, _ in figures),
            "ratio": median(one[0] / beside for one, beside in zip(figures, reading, strict=True)),
            "peak_bytes": max(peak for _, peak in figures),
        }
        for what, figures in found.items()
    ]
    table = Table("", "seconds", "times reading", "peak MB", title=f"{elements:,} dependencies")
    for row in rows:
        table.add_row(
            str(row["what"]), f"{row['seconds']:.2f}", f"{row['ratio']:.2f}", f"{row['peak_bytes'] / 1e6:.0f}"
        )
    console.print(table)
    default = rows[1]
    met = default["ratio"] <= TARGET_RATIO and default["peak_bytes"] <= TARGET_BYTES
    target = f"at most {TARGET_RATIO:g} times reading and {TARGET_BYTES / 1e6:.0f} MB"
    console.print(f"target: {target}: {'met' if met else 'NOT met'}")
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps(
            {
                "dependencies": elements,
                "rounds": rounds,
                "target_ratio": TARGET_RATIO,
                "target_bytes": TARGET_BYTES,
                "machine": {
                    "cpus": os.cpu_count(),
                    "system": platform.platform(),
                    "python": platform.python_version(),
                    "numpy": version("numpy"),
                    "scipy": version("scipy"),
                },
                "rows": rows,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    typer.run(main)

"""How fast a ledger is written and read, beside plain files of the same bytes on the same disk.

Every round writes and reads both, one right after the other, each first in every other round, with nothing
left to be written by the system. A ratio is the median over the rounds of the ratio in one:
1. commit: one entry of all accumulators, durable, against writing and fsyncing its arrays as plain files;
2. read, with the files in the page cache (warm) and dropped from it (cold), every total of every parameter:
   as whole arrays, and by `Ledger.walk`, which uses the memory of a chunk again for the next one. Peers:
   - read: np.fromfile of the same bytes, into new memory as whole arrays are;
   - read into one buffer: readinto of 16 MiB at a time, which the next ones overwrite: the data is moved once
     and never looked at, a bound that nothing that checks or converts can reach;
   - read, check and convert: plain files with crc32c and the conversion to float64 or int64, twice the bytes
     of what is stored, added up on one thread; in new memory for whole arrays, in the same for a walk.
   Whole arrays are twice the bytes of what is read, in new memory that the system has to clear.
3. merge: four entries into one, against nothing, as a cost.
Ratios are speeds: above 1 the ledger is faster. Peak extra memory is measured apart, with tracemalloc.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import gradtrace as gt
from gradtrace.ledger.array_reader import BLOCK
from gradtrace.ledger.encoding import checksum, extended
from gradtrace.ledger.format import ACCUMULATORS, Layout, ParameterInfo
from gradtrace.ledger.writer import LedgerWriter

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.7
WIDTH = 1024
# Bytes that a plain reader reads at once: those of a chunk.
CHUNK = 2**24
Arrays = Mapping[str, NDArray[Any]]


def parameter(name: str, *shape: int) -> ParameterInfo:
    return ParameterInfo(
        name,
        shape,
        "float32",
        module=name.rpartition(".")[0],
        module_class="Linear",
        role="weight",
        orientation="out,in" if len(shape) == 2 else "",
    )


def layout_of(size: int) -> Layout:
    """A transformer's proportions: an embedding of a third, then matrices of 1024 x 1024 with biases."""
    infos = [parameter("embedding.weight", max(1, size // 3 // WIDTH), WIDTH)]
    left = size - infos[0].size
    while left > 0:
        rows = max(1, min(WIDTH, left // (WIDTH + 1)))
        infos.append(parameter(f"layers.{len(infos)}.weight", rows, WIDTH))
        infos.append(parameter(f"layers.{len(infos)}.bias", rows))
        left -= rows * (WIDTH + 1)
    return Layout.whole(infos)


def drawn(size: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)
    return {
        name: random.integers(0, 1000, size, np.int32).astype(dtype) for name, dtype in ACCUMULATORS.items()
    }


def new_ledger(path: Path, layout: Layout) -> LedgerWriter:
    writer = LedgerWriter.create(path, settings={})
    writer.add_layout(layout, [np.zeros(layout.size(0), np.float32)])
    return writer


def commit(writer: LedgerWriter, arrays: Arrays) -> None:
    end = writer.end
    writer.commit_entry(end, end + 1, layout=0, windows=1, arrays=arrays, details={})


def write_plain(folder: Path, arrays: Arrays) -> None:
    folder.mkdir()
    for name, array in arrays.items():
        with (folder / name).open("xb") as file:
            file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def read_plain(folders: list[Path]) -> None:
    for folder in folders:
        for name, dtype in ACCUMULATORS.items():
            np.fromfile(folder / name, dtype)


def read_plain_into(folders: list[Path]) -> None:
    buffer = np.empty(CHUNK, np.uint8)
    for folder in folders:
        for name in ACCUMULATORS:
            with (folder / name).open("rb", buffering=0) as file:
                while file.readinto(buffer.data):
                    pass


def wide(dtype: str) -> type[np.generic]:
    return np.float64 if dtype.startswith("float") else np.int64


def add_plain(folders: list[Path]) -> None:
    for name, dtype in ACCUMULATORS.items():
        total: NDArray[Any] | None = None
        for folder in folders:
            part = np.fromfile(folder / name, dtype)
            checksum(part)
            total = part.astype(wide(dtype)) if total is None else np.add(total, part, out=total)


def walk_plain(folders: list[Path]) -> None:
    buffer, room = np.empty(BLOCK, np.uint8), np.empty(BLOCK // 4, np.float64)
    for name, dtype in ACCUMULATORS.items():
        with ExitStack() as stack:
            files = [stack.enter_context((folder / name).open("rb", buffering=0)) for folder in folders]
            crcs, total = [0] * len(files), room.view(wide(dtype))
            while True:
                for position, file in enumerate(files):
                    count = file.readinto(buffer.data)
                    crcs[position] = extended(crcs[position], buffer[:count])
                    part = buffer[:count].view(dtype)
                    if position:
                        total[: part.size] += part
                    else:
                        np.copyto(total[: part.size], part)
                if not count:
                    break


def read_ledger(path: Path) -> None:
    for record in gt.Ledger.open(path).values():
        for name in ACCUMULATORS:
            getattr(record, name)


def walk_ledger(path: Path) -> None:
    ledger = gt.Ledger.open(path)
    for _ in ledger.walk(ledger, tuple(ACCUMULATORS)):
        pass


def drop(folder: Path) -> None:
    """Take the files below out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def peak(action: Callable[[], object]) -> int:
    """The most bytes that Python and numpy held at once for it."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Bench:
    """The files of one run: one entry of all the bytes, and four entries of a quarter each."""

    def __init__(self, folder: Path, dependencies: int) -> None:
        self.folder = folder
        self.times: dict[str, list[float]] = {}
        self.layouts = {1: layout_of(dependencies), 4: layout_of(dependencies // 4)}
        self.arrays = {entries: drawn(layout.size(0)) for entries, layout in self.layouts.items()}

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays[1].values())

    def ledger(self, entries: int) -> Path:
        return self.folder / f"{entries}.ledger.zarr"

    def plain(self, entries: int) -> list[Path]:
        return [self.folder / f"{entries}-plain-{number}" for number in range(entries)]

    def prepare(self) -> None:
        for entries, layout in self.layouts.items():
            with new_ledger(self.ledger(entries), layout) as writer:
                for folder in self.plain(entries):
                    commit(writer, self.arrays[entries])
                    write_plain(folder, self.arrays[entries])

    def time(self, what: str, action: Callable[[], object]) -> None:
        self.times.setdefault(what, []).append(seconds(action))

    def in_turn(
        self, actions: Mapping[str, Callable[[], object]], first: str
    ) -> list[tuple[str, Callable[[], object]]]:
        """The actions, the other way round in every other round; `first` is timed once a round."""
        ordered = list(actions.items())
        return ordered[::-1] if len(self.times.get(first, ())) % 2 else ordered

    def write(self) -> None:
        path, plain = self.folder / "new.ledger.zarr", self.folder / "new-plain"
        with new_ledger(path, self.layouts[1]) as writer:
            actions: dict[str, Callable[[], object]] = {
                "plain": lambda: write_plain(plain, self.arrays[1]),
                "ledger": lambda: commit(writer, self.arrays[1]),
            }
            for what, action in self.in_turn(actions, "write plain"):
                os.sync()
                self.time(f"write {what}", action)
        shutil.rmtree(path)
        shutil.rmtree(plain)

    def read(self, state: str, entries: int) -> None:
        plain = self.plain(entries)
        actions: dict[str, Callable[[], object]] = {
            "plain": lambda: read_plain(plain),
            "buffer": lambda: read_plain_into(plain),
            "plain whole": lambda: add_plain(plain),
            "plain walk": lambda: walk_plain(plain),
            "whole": lambda: read_ledger(self.ledger(entries)),
            "walk": lambda: walk_ledger(self.ledger(entries)),
        }
        for what, action in self.in_turn(actions, f"read {state} {entries} plain"):
            if state == "cold":
                drop(self.folder)
            else:
                action()
            self.time(f"read {state} {entries} {what}", action)

    def merge(self) -> None:
        path = self.folder / "merged.ledger.zarr"
        with new_ledger(path, self.layouts[4]) as writer:
            # Entries are joined once they are older than four of their widths: a far wider one follows.
            for end in (1, 2, 3, 4, 64):
                writer.commit_entry(writer.end, end, layout=0, windows=1, arrays=self.arrays[4], details={})
            self.time("merge", lambda: writer.merge(protected=[4]))
            assert [entry.end for entry in writer.entries] == [4, 64]
        shutil.rmtree(path)

    def rounds(self, repeats: int, states: list[str]) -> Iterator[str]:
        for _ in range(repeats):
            yield "writing"
            self.write()
            for state in states:
                for entries in self.layouts:
                    yield f"reading {entries}, {state}"
                    self.read(state, entries)
            yield "merging"
            self.merge()

    def memory(self) -> dict[str, int]:
        path = self.folder / "memory.ledger.zarr"
        with new_ledger(path, self.layouts[1]) as writer:
            written = peak(lambda: commit(writer, self.arrays[1]))
        shutil.rmtree(path)
        largest = 8 * max(info.size for info in self.layouts[1].parameters)
        return {
            "commit": written,
            "read": peak(lambda: read_ledger(self.ledger(1))) - largest,
            "walk": peak(lambda: walk_ledger(self.ledger(1))),
            "read_largest_total": largest,
        }


def rows_of(bench: Bench, states: list[str]) -> list[dict[str, Any]]:
    times = {what: median(values) for what, values in bench.times.items()}

    def row(what: str, ours: str, theirs: str, against: str) -> dict[str, Any]:
        return {
            "what": what,
            "against": against,
            "ledger_seconds": times[ours],
            "plain_seconds": times[theirs],
            "ledger_gb_per_s": bench.bytes / 1e9 / times[ours],
            "plain_gb_per_s": bench.bytes / 1e9 / times[theirs],
            "ratio": median(
                plain / own for plain, own in zip(bench.times[theirs], bench.times[ours], strict=True)
            ),
        }

    rows = [row("commit", "write ledger", "write plain", "write and fsync")]
    for state in states:
        for entries in bench.layouts:
            of = f"totals of {entries} {'entry' if entries == 1 else 'entries'}, {state}"
            key = f"read {state} {entries}"
            for way, what in (("whole", f"whole {of}"), ("walk", f"walk over {of}")):
                rows.append(row(what, f"{key} {way}", f"{key} plain", "read"))
                rows.append(row(what, f"{key} {way}", f"{key} buffer", "read into one buffer"))
                rows.append(row(what, f"{key} {way}", f"{key} plain {way}", "read, check and convert"))
    return rows


def main(
    gigabytes: Annotated[float, typer.Option(min=0.001, help="Bytes of accumulators, in 10^9.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; figures are medians over them.")] = 5,
    folder: Annotated[
        Path, typer.Option(help="A folder on the disk to be measured; about 6 times the bytes are needed.")
    ] = ROOT,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/ledger_io.json",
) -> None:
    """Measure committing, reading and merging a ledger beside plain files of the same bytes.

    Example, on another disk:

      python benchmarks/ledger_io.py --gigabytes 1 --folder /mnt/fast
    """
    console = Console()
    states = ["warm", "cold"] if hasattr(os, "posix_fadvise") else ["warm"]
    with TemporaryDirectory(prefix="ledger-io-", dir=folder) as place, Progress(console=console) as progress:
        task = progress.add_task("preparing", total=1 + repeats * (2 + 2 * len(states)))
        bench = Bench(Path(place), round(gigabytes * 1e9 / 24))
        bench.prepare()
        for what in bench.rounds(repeats, states):
            progress.update(task, advance=1, description=what)
        progress.update(task, advance=1, description="measuring memory")
        memory = bench.memory()
    rows = rows_of(bench, states)
    merged = median(bench.times["merge"])
    console.print(table_of(rows, bench.bytes))
    console.print(
        f"Merging four entries of {bench.bytes / 4e9:.3g} GB into one takes {merged:.2f} s, "
        f"{merged / (bench.bytes / 1e9):.2f} s for each GB read.\n"
        f"Peak extra memory: {memory['commit'] / 1e6:.0f} MB to commit, beside the arrays; "
        f"{memory['read'] / 1e6:.0f} MB to read every total, beside the array that is handed out; "
        f"{memory['walk'] / 1e6:.0f} MB to walk over all.",
        highlight=False,
    )
    machine = {
        "cpus": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "zarr": version("zarr"),
    }
    figures = {
        "bytes": bench.bytes,
        "repeats": repeats,
        "target_ratio": TARGET,
        "machine": machine,
        "rows": rows,
        "merge_seconds": merged,
        "peak_extra_bytes": memory,
        "seconds": bench.times,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"Written to {out}", highlight=False)


def table_of(rows: list[dict[str, Any]], size: int) -> Table:
    table = Table(
        title=f"{size / 1e9:.3g} GB of accumulators; ratio of speeds, {TARGET:g} or more is the aim"
    )
    for heading in ("ledger", "against plain", "GB/s", "plain GB/s", "ratio"):
        table.add_column(heading, justify="left" if heading in ("ledger", "against plain") else "right")
    for row in rows:
        table.add_row(
            row["what"],
            row["against"],
            f"{row['ledger_gb_per_s']:.2f}",
            f"{row['plain_gb_per_s']:.2f}",
            f"{row['ratio']:.2f}" + ("" if row["ratio"] >= TARGET else " (below)"),
        )
    return table


if __name__ == "__main__":
    typer.run(main)

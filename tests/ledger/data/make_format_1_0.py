"""Makes format-1.0.ledger.zarr and what must be read from it; run once, kept, never run by a test.

    python tests/ledger/data/make_format_1_0.py

Two layouts (one rank; two ranks with boxes, tied weights and a gap), entries that were merged, marked by a
checkpoint, sampled and voided, all evidence below the step, and a merged entry's part and a voided entry
still on the disk, as a killed writer leaves them. Only the run's id and its time differ when made again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from gradtrace.ledger.format import ACCUMULATORS, BELOW, InputInfo, Layout, ParameterInfo, Piece
from gradtrace.ledger.part import PartWriter
from gradtrace.ledger.sampling import ALL_STEPS, Sampling
from gradtrace.ledger.writer import LedgerWriter

HERE = Path(__file__).parent
LEDGER = HERE / "format-1.0.ledger.zarr"
EXPECTED = HERE / "format-1.0.json"
SETTINGS = {
    "window_steps": 4,
    "entry_steps": 4,
    "threshold": 0.0,
    "include": ["*"],
    "exclude": [],
    "below": ["positions", "samples", "inputs", "gram"],
    "below_every": 2,
}
# What there was when it was made.
HELD = {**ACCUMULATORS, **BELOW}
Array: TypeAlias = np.ndarray[Any, Any]


def parameter(
    name: str, *shape: int, role: str, module_class: str, aliases: tuple[str, ...] = ()
) -> ParameterInfo:
    orientation = "out,in" if role == "weight" else ""
    return ParameterInfo(
        name,
        shape,
        "bfloat16" if role == "embedding" else "float32",
        aliases=aliases,
        module=name.rpartition(".")[0],
        module_class=module_class,
        role=role,
        orientation=orientation,
    )


EMBEDDING = parameter(
    "tokens.weight", 7, 3, role="embedding", module_class="Embedding", aliases=("head.weight",)
)
WEIGHT = parameter("layers.0.weight", 5, 3, role="weight", module_class="Linear")
BIAS = parameter("layers.0.bias", 5, role="bias", module_class="Linear")
SCALE = parameter("scale", role="other", module_class="Net")
INPUTS = (InputInfo("layers.0", 3, 1), InputInfo("tokens", 7, 0))

FIRST = Layout.whole((EMBEDDING, WEIGHT, BIAS), INPUTS)
SECOND = Layout(
    (EMBEDDING, WEIGHT, BIAS, SCALE),
    (
        (Piece(0, 0, (0, 0), (4, 3)), Piece(1, 12, (0, 0), (5, 2)), Piece(3, 22, (), ())),
        # A gap between the pieces, and columns of the weight.
        (Piece(0, 0, (4, 0), (3, 3)), Piece(1, 10, (0, 2), (5, 1)), Piece(2, 15, (0,), (5,))),
    ),
    INPUTS,
)
LAYOUTS = (FIRST, SECOND)


def drawn(layout: Layout, rank: int, seed: int) -> dict[str, Array]:
    """Multiples of 1/64, with zeros among them: float64 sums in any order are exact."""
    random = np.random.default_rng([seed, rank])
    arrays = {}
    for name, dtype in HELD.items():
        size = layout.size(rank, name)
        values = random.integers(-4096, 4096, size) / 64 * random.integers(0, 2, size)
        arrays[name] = (values if dtype != "uint32" else np.abs(values)).astype(dtype)
    return arrays


def details(layout: Layout, begin: int, steps: int) -> dict[str, Any]:
    count = len(layout.parameters)
    rate = 0.5 / (1 + begin)
    told: dict[str, Any] = {
        "counts": {
            "steps": [steps - 1] * count,
            "missing": [1] * count,
            "zero": list(range(count)),
            "nonfinite": [0] * count,
            "skipped": [begin % 3] * count,
        },
        "groups": [
            {
                "optimizer": 0,
                "kind": "AdamW",
                "parameters": [0, 1],
                "runs": [[steps - 1, {"lr": rate, "weight_decay": 0.125}], [1, {"lr": rate / 2}]],
            },
            {"optimizer": 1, "kind": "SGD", "parameters": [2], "runs": [[steps, {"lr": 0.25}]]},
        ],
        "watched": {
            "counts": {
                "steps": [steps // 2] * (count - 1) + [0],
                "positions": [steps * 16] * (count - 1) + [0],
                "samples": [steps * 2] * (count - 1) + [0],
            },
            "inputs": {"steps": [steps // 2, steps // 2], "positions": [steps * 16, steps * 16]},
            "fallen": {str(count - 1): "no use of it was seen: a function uses it, and not its own module"},
        },
    }
    if begin == 8:
        told["follows_checkpoint"] = True
    if begin == 12:
        told |= {"passed_cuts": 2, "failed_commits": 1}
    return told


def place(layout: Layout, index: int, flats: list[Array]) -> Array:
    """From the definition of a piece, element by element."""
    whole = np.zeros(layout.parameters[index].shape)
    for flat, pieces in zip(flats, layout.ranks, strict=True):
        for piece in pieces:
            if piece.parameter == index:
                for position, corner in enumerate(np.ndindex(piece.shape)):
                    spot = tuple(a + b for a, b in zip(piece.start, corner, strict=True))
                    whole[spot] = flat[piece.offset + position]
    return whole


class Maker:
    """Writes entries, and keeps what was drawn for those that are to count."""

    def __init__(self, writer: LedgerWriter) -> None:
        self.writer = writer
        self.ranks = [PartWriter(LEDGER, rank) for rank in range(2)]
        self.kept: list[tuple[int, int, int, list[dict[str, Array]], dict[str, Any]]] = []

    def begin_layout(self, number: int) -> None:
        layout = LAYOUTS[number]
        digests = [
            self.ranks[rank].write_opening(number, drawn(layout, rank, 900 + number)["grad_sum"])
            for rank in range(len(layout.ranks))
        ]
        assert self.writer.join_layout(layout, digests) == number

    def commit(self, end: int, number: int, sampling: Sampling = ALL_STEPS) -> None:
        layout, begin, generation = LAYOUTS[number], self.writer.end, self.writer.generation
        arrays = [drawn(layout, rank, 100 * generation + begin) for rank in range(len(layout.ranks))]
        told = details(layout, begin, end - begin)
        parts = [self.ranks[rank].write_entry(begin, end, generation, own) for rank, own in enumerate(arrays)]
        windows = (end - begin) // 4
        self.writer.commit_parts(
            begin, end, layout=number, windows=windows, parts=parts, details=told, sampling=sampling
        )
        self.kept.append((begin, end, number, arrays, told))

    def void(self, begin: int) -> None:
        self.writer.void(begin)
        self.kept = [one for one in self.kept if one[1] <= begin]

    def totals(self, begin: int, end: int) -> dict[str, Any]:
        """What `Ledger.between(begin, end)` must say; opening balances are from the first layout left."""
        kept = [one for one in self.kept if begin <= one[0] and one[1] <= end]
        told: dict[str, Any] = {"parameters": {}, "inputs": {}}
        for info in (EMBEDDING, WEIGHT, BIAS, SCALE):
            own = [one for one in kept if info in LAYOUTS[one[2]].parameters]
            if own:
                told["parameters"][info.name] = self._parameter(info, own)
        for index, inputs in enumerate(INPUTS):
            moments = {}
            for name in ("input_sum", "input_sumsq", "input_gram"):
                first, length = FIRST.input_range(index, name)
                total = sum(one[3][0][name][first : first + length].astype(np.float64) for one in kept)
                moments[name] = np.asarray(total).tolist()
            counts = [one[4]["watched"]["inputs"] for one in kept]
            told["inputs"][inputs.module] = moments | {
                name: sum(one[name][index] for one in counts) for name in ("steps", "positions")
            }
        return told

    def _parameter(self, info: ParameterInfo, own: list[Any]) -> Mapping[str, Any]:
        places = [(LAYOUTS[one[2]].parameters.index(info), one) for one in own]
        number = own[0][2]
        layout = LAYOUTS[number]
        opening = [drawn(layout, rank, 900 + number)["grad_sum"] for rank in range(len(layout.ranks))]
        watched = {
            name: sum(one[4]["watched"]["counts"][name][index] for index, one in places)
            for name in ("steps", "positions", "samples")
        }
        history = [
            [group["kind"], steps, settings]
            for index, one in places
            for group in one[4]["groups"]
            if index in group["parameters"]
            for steps, settings in group["runs"]
        ]
        totals = {
            name: np.sum(
                [
                    place(LAYOUTS[one[2]], index, [arrays[name].astype(np.float64) for arrays in one[3]])
                    for index, one in places
                ],
                axis=0,
            ).tolist()
            for name in HELD
            if not name.startswith("input_") and (name not in BELOW or watched["steps"])
        }
        return {
            "info": info.to_json(),
            "opening": place(layout, layout.parameters.index(info), opening).tolist(),
            "totals": totals,
            "counts": {
                name: sum(one[4]["counts"][name][index] for index, one in places)
                for name in ("steps", "missing", "zero", "nonfinite", "skipped")
            },
            "watched": watched,
            "windows": sum((one[1] - one[0]) // 4 for one in own),
            "updates": history,
        }


def main() -> None:
    shutil.rmtree(LEDGER, ignore_errors=True)
    part = "entries/000000000004-000000000008-0000"
    commit = "commits/000000000004-000000000008-0000.json"
    with LedgerWriter.create(LEDGER, settings=SETTINGS, extra=BELOW) as writer:
        maker = Maker(writer)
        maker.begin_layout(0)
        for end in (4, 8, 12, 16):
            maker.commit(end, 0)
        maker.void(12)
        maker.commit(16, 0, Sampling(2, 3))
        maker.begin_layout(1)
        maker.commit(24, 1)
        maker.commit(44, 1)
        kept = HERE / "kept"
        shutil.copytree(LEDGER / part, kept / "entry")
        shutil.copy(LEDGER / commit, kept / "commit")
        assert writer.merge() == 2
        # A writer that is killed in a merge leaves a part, which gives way to the merged entry.
        shutil.copytree(kept / "entry", LEDGER / part)
        shutil.copy(kept / "commit", LEDGER / commit)
        shutil.rmtree(kept)
        maker.void(24)
        maker.commit(32, 1)
        entries = [
            [
                one.begin,
                one.end,
                one.generation,
                one.layout,
                one.windows,
                one.sampling.stride,
                one.sampling.steps,
            ]
            for one in writer.entries
        ]
    (LEDGER / "writer.lock").unlink(missing_ok=True)
    told = {
        "settings": SETTINGS,
        "accumulators": dict(HELD),
        "entries": entries,
        "checkpoints": [8],
        "spans": {f"{begin}-{end}": maker.totals(begin, end) for begin, end in ((0, 32), (0, 12), (12, 24))},
    }
    EXPECTED.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

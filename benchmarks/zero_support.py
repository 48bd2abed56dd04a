"""Is "never supported" exact? The ledger's zeros beside the data and beside a replay, sample by sample.

Two claims, checked on the MNIST recipe with and without weight decay:
1. the first-layer columns without any event are exactly the pixels that are zero in every training image;
2. every further weight with events == 0 never met a sample whose input and output gradient were both nonzero,
   counted by running the same training again. Both directions are counted, and what does not fit is printed.
Beside them: how many of these weights `init` and `magnitude` find from the final weights alone.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import lightning.pytorch as pl
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.callbacks import GradientLedger
from gradtrace.evidence.never_supported import never_supported, smallest
from gradtrace.report.tables import never_supported_table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))
from mnist import EPOCHS, Classifier, digits, fit, validate  # noqa: E402

FDR = 0.05


class CountSamples(pl.Callback):
    """Counts, per weight, the samples whose input and whose output gradient are both nonzero."""

    def __init__(self, net: Classifier) -> None:
        self.counts: dict[str, Tensor] = {}
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Linear):
                self.counts[f"{name}.weight"] = torch.zeros(layer.weight.shape)
                self._watch(layer, self.counts[f"{name}.weight"])

    def _watch(self, layer: nn.Linear, counts: Tensor) -> None:
        seen: list[Tensor] = []

        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                seen.append((inputs[0].detach() != 0).float())
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        def backward(gradient: Tensor) -> None:
            # Counts stay far below 2**24, so float32 holds them exactly.
            counts.add_((gradient != 0).float().T @ seen.pop())

        layer.register_forward_hook(forward)


def train(
    seed: int, epochs: int, weight_decay: float, path: Path | None
) -> tuple[Classifier, dict[str, Any]]:
    """One training: recorded into a ledger at `path`, or replayed and counted when there is none."""
    torch.manual_seed(seed)
    net = Classifier(weight_decay=weight_decay)
    if path is not None:
        fit(net, seed, epochs, [GradientLedger(path)])
        return net, {}
    counter = CountSamples(net)
    fit(net, seed, epochs, [counter])
    return net, {name: counts.numpy() for name, counts in counter.counts.items()}


def check(seed: int, epochs: int, weight_decay: float, folder: Path, console: Console) -> dict[str, Any]:
    path = folder / f"decay-{weight_decay:g}.ledger.zarr"
    net, _ = train(seed, epochs, weight_decay, path)
    replay, counts = train(seed, epochs, weight_decay, None)
    same = all(torch.equal(a, b) for a, b in zip(net.parameters(), replay.parameters(), strict=True))
    ledger = gt.Ledger.open(path)
    never = {name: ledger[name].events == 0 for name in counts}
    unmet = {name: count == 0 for name, count in counts.items()}

    blank = (digits().train_images == 0).all(dim=0).numpy()
    first = next(iter(counts))
    dead_columns = never[first].all(axis=0)
    further: dict[str, NDArray[np.bool_]] = dict(never)
    further[first] = never[first] & ~blank
    total = sum(int(mask.sum()) for mask in further.values())
    confirmed = sum(int((mask & unmet[name]).sum()) for name, mask in further.items())

    rejected = gt.select(gt.score(ledger, net, by="init"), fdr=FDR)
    magnitude = smallest(gt.score(ledger, net, by="magnitude"), {k: int(v.sum()) for k, v in never.items()})
    found = never_supported(
        ledger,
        tuple(counts),
        {
            f"init: not rejected at fdr {FDR:g}": {name: ~rejected[name] for name in counts},
            "magnitude: as many of the smallest, per layer": magnitude,
        },
    )
    result = {
        "weight_decay": weight_decay,
        "accuracy": validate(net),
        "steps": ledger.steps,
        "replay_is_bit_identical": same,
        "blank_pixels": int(blank.sum()),
        "columns_without_events": int(dead_columns.sum()),
        "columns_without_events_but_not_blank": int((dead_columns & ~blank).sum()),
        "blank_pixels_with_events": int((blank & ~dead_columns).sum()),
        "further_never_supported": total,
        "further_confirmed": confirmed,
        "never_met_but_with_events": sum(int((unmet[k] & ~never[k]).sum()) for k in counts),
        "found": found.to_json(),
    }
    result["exact"] = bool(
        same
        and np.array_equal(dead_columns, blank)
        and confirmed == total
        and result["never_met_but_with_events"] == 0
    )
    same_columns = "the same" if np.array_equal(dead_columns, blank) else "NOT the same"
    console.print(
        f"decay {weight_decay:g}, accuracy {result['accuracy']:.1%}: {result['columns_without_events']} "
        f"columns without an event, {result['blank_pixels']} blank pixels, {same_columns}; {confirmed:,} of "
        f"{total:,} further weights without an event confirmed by the replay",
        highlight=False,
    )
    never_supported_table(found).print(console)
    return result


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = EPOCHS,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/zero_support.json",
) -> None:
    """Check that weights without events are exactly those that no sample supported."""
    console = Console()
    with TemporaryDirectory(prefix="zero-support-") as folder:
        runs = [check(seed, epochs, decay, Path(folder), console) for decay in (0.01, 0.0)]
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        json.dumps({"epochs": epochs, "seed": seed, "machine": machine, "runs": runs}, indent=2) + "\n"
    )
    console.print(f"Written to {out}", highlight=False)
    if not all(run["exact"] for run in runs):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

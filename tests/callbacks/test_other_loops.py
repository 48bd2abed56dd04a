"""The recorder in loops of Fabric and accelerate, and the callback under manual optimization."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradtrace as gt
from gradtrace.callbacks import GradientLedger

Loop = Callable[[nn.Module], Any]
SMALL: Any = {"window_steps": 2, "entry_steps": 4}


@pytest.fixture(autouse=True)
def _only_our_warnings() -> Iterator[None]:
    """What the frameworks warn about among themselves is theirs; ours stay errors."""
    with warnings.catch_warnings():
        for module in ("accelerate", "lightning", "torch"):
            warnings.filterwarnings("ignore", module=rf"{module}\b")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def data(rows: int = 44) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))
    x[:, 3] = 0.0
    return x, x[:, :3].argmax(1)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), batch_size=4)


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_fabric_records_what_a_float64_loop_gives_under_plain_names(
    tmp_path: Path, gradient_loop: Loop, precision: Any, accumulate: int
) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    plain = network()
    model, optimizer = fabric.setup(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    loop = gradient_loop(plain)
    with gt.Recorder(model, tmp_path / "run", **SMALL) as recorder:
        for number, (x, y) in enumerate(loader(), 1):
            fabric.backward(nn.functional.cross_entropy(model(x), y) / accumulate)
            if number % accumulate == 0:
                loop.observe()
                recorder.observe(optimizer)
                fabric.clip_gradients(model, optimizer, max_norm=1e-3)
                optimizer.step()
                optimizer.zero_grad()
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    assert list(ledger) == names(plain)
    assert ledger.steps == 11 // accumulate
    assert {update.kind for update in ledger["0.weight"].history} == {"AdamW"}


def test_fabric_brings_its_fp16_scaler_along(tmp_path: Path, gradient_loop: Loop) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    plain = network()
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=1e-2))
    loop = gradient_loop(plain)
    with gt.Recorder(model, tmp_path / "run", **SMALL) as recorder:
        for number, (x, y) in enumerate(loader()):
            fabric.backward(nn.functional.cross_entropy(model(x), y))
            if number == 3:
                gradient = next(plain.parameters()).grad
                assert gradient is not None
                gradient[1, 1] = float("inf")
            else:
                loop.observe(divide_by=scaler.get_scale())
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    assert {ledger[name].skipped for name in ledger} == {1}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_accelerate_records_what_a_float64_loop_gives_under_plain_names(
    tmp_path: Path, gradient_loop: Loop, accumulate: int
) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    plain = network()
    model, optimizer, batches = accelerator.prepare(
        plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), loader()
    )
    loop = gradient_loop(plain)
    with gt.Recorder(model, tmp_path / "run", **SMALL) as recorder:
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    loop.observe()
                    recorder.observe(optimizer)
                    accelerator.clip_grad_norm_(model.parameters(), 1e-3)
                optimizer.step()
                optimizer.zero_grad()
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    assert list(ledger) == names(plain)
    assert ledger.steps == -(-11 // accumulate)
    assert {update.kind for update in ledger["0.weight"].history} == {"AdamW"}


def test_accelerate_brings_its_fp16_scaler_along(tmp_path: Path, gradient_loop: Loop) -> None:
    accelerator = Accelerator(cpu=True)
    # accelerate has no fp16 without a GPU; this is the part of it that optimizers are given.
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plain = network()
    model, optimizer = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=1e-2))
    loop = gradient_loop(plain)
    with gt.Recorder(model, tmp_path / "run", **SMALL) as recorder:
        for x, y in loader():
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            loop.observe(divide_by=scaler.get_scale())
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    loop.check(gt.Ledger.open(tmp_path / "run"))


def test_a_wrapper_that_changes_what_a_step_does_keeps_its_own_kind(tmp_path: Path) -> None:
    class Lookahead(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer
            super().__init__(optimizer.param_groups, {})

    model = network()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=1e-2))
    with gt.Recorder(model, tmp_path / "run", **SMALL) as recorder:
        x, y = data()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        recorder.observe(optimizer)
    (update,) = gt.Ledger.open(tmp_path / "run")["0.weight"].history
    assert update.kind.endswith("Lookahead")


class Manual(LightningModule):
    """The first layer steps at every batch, the last at every third, on gradients added up meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        first, last = optimizers
        self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        first.step()
        first.zero_grad()
        if batch_idx % 3 == 2:
            last.step()
            last.zero_grad()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[0].parameters(), lr=1e-2),
            torch.optim.AdamW(self.net[2].parameters(), lr=1e-3, weight_decay=0.1),
        ]


def test_manual_optimization_at_different_rates_records_each_optimizers_own_steps(
    tmp_path: Path, gradient_loop: Loop
) -> None:
    loops: list[Any] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            loops.append(gradient_loop(pl_module))

        def on_before_optimizer_step(
            self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
        ) -> None:
            loops[0].observe(only={id(p) for group in optimizer.param_groups for p in group["params"]})

    run = Trainer(
        max_epochs=2,
        callbacks=[Watch(), GradientLedger(tmp_path / "run", **SMALL)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(Manual(), loader())
    ledger = gt.Ledger.open(tmp_path / "run")
    loops[0].check(ledger)
    assert ledger.steps == 22 + 6
    assert (ledger["net.0.weight"].steps, ledger["net.2.weight"].steps) == (22, 6)
    assert {update.kind for update in ledger["net.0.weight"].history} == {"SGD"}
    assert {update.settings["weight_decay"] for update in ledger["net.2.weight"].history} == {0.1}
    assert sum(update.steps for update in ledger["net.2.weight"].history) == 6

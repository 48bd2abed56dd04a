"""The Lightning callback in runs as people make them, beside a float64 loop over the same gradients."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradtrace as gt
from gradtrace.callbacks import GradientLedger
from gradtrace.errors import (
    InvalidValueError,
    LedgerExistsError,
    LedgerNotFoundError,
    MismatchError,
    UnsupportedError,
)

Loop = Callable[[nn.Module], Any]


@pytest.fixture(autouse=True)
def _only_our_warnings() -> Iterator[None]:
    """Lightning warns about loader workers and other matters of its own; ours stay errors."""
    with warnings.catch_warnings():
        for module in ("lightning", "torch"):
            warnings.filterwarnings("ignore", module=rf"{module}\b")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


class Model(LightningModule):
    def __init__(self, optimizers: int = 1, fused: bool = False, decay: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net: Any = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.count, self.fused, self.decay = optimizers, fused, decay
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
        return None

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        if self.count == 1:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=self.fused, weight_decay=self.decay)
        return [torch.optim.SGD(self.net[index].parameters(), lr=1e-2) for index in (0, 2)]


class Watch(Callback):
    """Feeds the float64 loop at the same moment, and remembers what it saw."""

    def __init__(self, loop: Loop, spoil: Callable[[int, nn.Module], None] | None = None) -> None:
        self.make, self.spoil, self.steps = loop, spoil, 0
        self.loop: Any = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.loop is None:
            self.loop = self.make(pl_module)
        if self.spoil is not None:
            self.spoil(self.steps, pl_module)
        self.steps += 1
        self.loop.observe(only={id(p) for group in optimizer.param_groups for p in group["params"]})


def loader(rows: int = 48, batch_size: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 6, generator=generator)
    x[:, 3] = 0.0
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size)


def trainer(root: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": root,
        **settings,
    }
    return Trainer(callbacks=list(callbacks), **settings)


def resumes(ckpt: Path | None) -> dict[str, Any]:
    return {"weights_only": True} if ckpt else {}


SMALL: Any = {"window_steps": 2, "entry_steps": 4}


def spoil_one(step: int, model: nn.Module) -> None:
    if step == 3:
        gradient = next(model.parameters()).grad
        assert gradient is not None
        gradient[0, 1] = float("nan")


@pytest.mark.parametrize(
    ("model", "settings", "spoil"),
    [
        pytest.param({}, {}, None, id="fp32"),
        pytest.param({}, {"precision": "bf16-mixed"}, None, id="bf16-mixed"),
        pytest.param({}, {"precision": "bf16-true"}, None, id="bf16-true"),
        pytest.param({}, {"accumulate_grad_batches": 4}, None, id="accumulation 4"),
        pytest.param({}, {"gradient_clip_val": 1e-3}, None, id="clipping"),
        pytest.param({"optimizers": 2}, {}, None, id="two optimizers"),
        pytest.param({"fused": True}, {}, None, id="fused optimizer"),
        pytest.param({}, {}, spoil_one, id="a NaN step"),
    ],
)
def test_a_fit_records_what_a_float64_loop_over_the_gradients_gives(
    tmp_path: Path, gradient_loop: Loop, model: Any, settings: Any, spoil: Any
) -> None:
    watch = Watch(gradient_loop, spoil)
    ledger = GradientLedger(tmp_path / "run", **SMALL)
    trainer(tmp_path, watch, ledger, **settings).fit(Model(**model), loader())
    assert watch.loop is not None
    watch.loop.check(gt.Ledger.open(tmp_path / "run"))
    assert gt.Ledger.open(tmp_path / "run").steps == watch.steps > 0


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_fp16_scaler_skips_are_counted_and_add_nothing(tmp_path: Path, fused: bool) -> None:
    class Spoil(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.global_step + trainer.fit_loop.epoch_loop.batch_idx in (4, 5):
                gradient = next(pl_module.parameters()).grad
                assert gradient is not None
                gradient[0, 0] = float("inf")

    sums: list[Any] = []

    class Sum(Callback):
        def on_before_optimizer_step(
            self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
        ) -> None:
            gradient: Any = dict(pl_module.named_parameters())["net.2.bias"].grad
            before = next(pl_module.parameters()).grad
            assert before is not None
            if bool(torch.isfinite(before).all()):
                sums.append(gradient.double().numpy() / (scaler.get_scale() if fused else 1.0))

    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    run = trainer(tmp_path, Spoil(), Sum(), GradientLedger(tmp_path / "run", **SMALL), plugins=[plugin])
    run.fit(Model(fused=fused), loader())
    record = gt.Ledger.open(tmp_path / "run")["net.2.bias"]
    assert record.skipped == 12 - len(sums) > 0
    assert record.steps == len(sums)
    np.testing.assert_allclose(record.grad_sum, np.sum(sums, axis=0), rtol=1e-4, atol=1e-6)


def test_fit_called_twice_goes_on_in_the_same_ledger(tmp_path: Path) -> None:
    ledger = GradientLedger(tmp_path / "run", **SMALL)
    run, model = trainer(tmp_path, ledger), Model()
    run.fit(model, loader())
    run.fit_loop.max_epochs = 3
    run.fit(model, loader())
    assert gt.Ledger.open(tmp_path / "run").steps == 18


def test_a_callback_used_again_for_another_model_does_not_mix_their_ledgers(tmp_path: Path) -> None:
    ledger = GradientLedger(tmp_path / "run", **SMALL)
    first, second = Model(), Model()
    trainer(tmp_path, ledger).fit(first, loader())
    for _ in range(2):
        with pytest.raises(LedgerExistsError, match=r"append.*overwrite"):
            trainer(tmp_path, ledger).fit(second, loader())
    assert gt.Ledger.open(tmp_path / "run").steps == 12
    trainer(tmp_path, ledger).fit(first, loader())
    assert gt.Ledger.open(tmp_path / "run").steps == 24


def test_a_script_run_again_is_refused_before_it_trains_unless_told_what_to_do(tmp_path: Path) -> None:
    trainer(tmp_path, GradientLedger(tmp_path / "run", **SMALL)).fit(Model(), loader())
    watched = Model()
    before = watched.net[0].weight.detach().clone()
    with pytest.raises(LedgerExistsError, match=r"append.*overwrite"):
        trainer(tmp_path, GradientLedger(tmp_path / "run", **SMALL)).fit(watched, loader())
    assert torch.equal(before, watched.net[0].weight)
    trainer(tmp_path, GradientLedger(tmp_path / "run", mode="append", **SMALL)).fit(Model(), loader())
    assert gt.Ledger.open(tmp_path / "run").steps == 24
    trainer(tmp_path, GradientLedger(tmp_path / "run", mode="overwrite", **SMALL)).fit(Model(), loader())
    assert gt.Ledger.open(tmp_path / "run").steps == 12


def test_a_foreign_folder_is_refused_before_it_trains_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(LedgerExistsError):
        trainer(tmp_path, GradientLedger(tmp_path / "run", mode="overwrite")).fit(Model(), loader())
    assert os.listdir(tmp_path / "run") == ["notes.txt"]


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_evaluation_alone_writes_nothing(tmp_path: Path, verb: str) -> None:
    run = trainer(tmp_path, GradientLedger(tmp_path / "run"))
    getattr(run, verb)(Model(), loader(), verbose=False)
    assert not (tmp_path / "run").exists()


def test_fast_dev_run_records_but_leaves_nothing_behind(tmp_path: Path) -> None:
    ledger = GradientLedger(tmp_path / "run")
    trainer(tmp_path, ledger, fast_dev_run=True).fit(Model(), loader())
    assert ledger.summary is not None
    assert ledger.summary.steps == 1
    assert not os.listdir(tmp_path)


def test_parameters_made_in_configure_model_are_recorded(tmp_path: Path) -> None:
    class Late(Model):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def configure_model(self) -> None:
            self.net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    trainer(tmp_path, GradientLedger(tmp_path / "run")).fit(Late(), loader())
    assert list(gt.Ledger.open(tmp_path / "run")) == [
        "net.0.weight",
        "net.0.bias",
        "net.2.weight",
        "net.2.bias",
    ]


def test_a_compiled_module_keeps_its_plain_names(tmp_path: Path) -> None:
    model = Model()
    model.net = torch.compile(model.net, backend="eager")
    trainer(tmp_path, GradientLedger(tmp_path / "run")).fit(model, loader())
    assert list(gt.Ledger.open(tmp_path / "run")) == [
        "net.0.weight",
        "net.0.bias",
        "net.2.weight",
        "net.2.bias",
    ]


def test_resuming_a_checkpoint_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    def fit(path: Path, epochs: int, ckpt: Path | None = None) -> None:
        saves = ModelCheckpoint(path.with_suffix(".ckpt"), filename="{epoch}", save_top_k=-1)
        run = trainer(
            tmp_path, saves, GradientLedger(path, **SMALL), enable_checkpointing=True, max_epochs=epochs
        )
        run.fit(Model(), loader(), ckpt_path=ckpt, **resumes(ckpt))

    fit(tmp_path / "whole", 3)
    fit(tmp_path / "broken", 2)
    fit(tmp_path / "broken", 3, tmp_path / "broken.ckpt" / "epoch=0.ckpt")
    whole, resumed = gt.Ledger.open(tmp_path / "whole"), gt.Ledger.open(tmp_path / "broken")
    assert [(e.begin, e.end) for e in whole.entries] == [(e.begin, e.end) for e in resumed.entries]
    for name in whole:
        np.testing.assert_array_equal(whole[name].grad_sum, resumed[name].grad_sum)
        np.testing.assert_array_equal(whole[name].window_votes, resumed[name].window_votes)


def test_resuming_beside_the_ledger_of_another_run_is_refused(tmp_path: Path) -> None:
    def fit(path: Path, ckpt: Path | None = None, epochs: int = 2) -> None:
        saves = ModelCheckpoint(tmp_path / "saved", filename=path.name)
        run = trainer(
            tmp_path, saves, GradientLedger(path, **SMALL), enable_checkpointing=True, max_epochs=epochs
        )
        run.fit(Model(), loader(), ckpt_path=ckpt, **resumes(ckpt))

    fit(tmp_path / "one")
    fit(tmp_path / "two")
    steps = gt.Ledger.open(tmp_path / "two").steps
    with pytest.raises(MismatchError, match="belongs to"):
        fit(tmp_path / "two", tmp_path / "saved" / "one.ckpt", 3)
    assert gt.Ledger.open(tmp_path / "two").steps == steps
    with pytest.raises(LedgerNotFoundError, match="overwrite"):
        fit(tmp_path / "three", tmp_path / "saved" / "one.ckpt", 3)


def test_testing_a_checkpoint_does_not_void_steps_of_a_later_fit(tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path / "saved", filename="{epoch}", save_top_k=-1)
    run = trainer(tmp_path, saves, GradientLedger(tmp_path / "run", **SMALL), enable_checkpointing=True)
    model = Model()
    run.fit(model, loader())
    run.test(model, loader(), ckpt_path=tmp_path / "saved" / "epoch=0.ckpt", verbose=False, weights_only=True)
    run.fit_loop.max_epochs = 3
    run.fit(model, loader())
    assert gt.Ledger.open(tmp_path / "run").steps == 18


def test_an_error_in_training_leaves_the_recorded_steps_readable(tmp_path: Path) -> None:
    class Bomb(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 7:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, Bomb(), GradientLedger(tmp_path / "run", **SMALL)).fit(Model(), loader())
    assert gt.Ledger.open(tmp_path / "run").steps == 7


def test_shares_never_supported_reach_the_logger_and_the_progress_bar(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs", version=0)
    run = trainer(tmp_path, GradientLedger(tmp_path / "run", **SMALL), logger=logger)
    run.fit(Model(), loader())
    ledger = gt.Ledger.open(tmp_path / "run")
    never = float((ledger["net.0.weight"].events == 0).mean())
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["ledger/never_supported/net.0.weight"]) == pytest.approx(never)
    assert never >= 1 / 6
    assert "never_supported" in run.progress_bar_metrics


def test_fit_says_at_its_begin_what_is_needed_and_at_its_end_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("gradtrace.callbacks.lightning.rank_zero_info", said.append)
    ledger = GradientLedger(tmp_path / "run", **SMALL)
    trainer(tmp_path, ledger).fit(Model(), loader())
    needed, recorded = said
    assert "of storage after 12 steps (" in needed
    assert ledger.summary is not None
    for line in (recorded, str(ledger.summary)):
        assert "12 steps of 53 dependencies" in line


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"window_steps": 0}, InvalidValueError),
        ({"threshold": -1.0}, InvalidValueError),
        ({"include": [3]}, InvalidValueError),
    ],
)
def test_bad_settings_are_refused_when_the_callback_is_made(
    tmp_path: Path, settings: Any, error: Any
) -> None:
    with pytest.raises(error):
        GradientLedger(tmp_path / "run", **settings)


def test_lbfgs_is_refused_by_name(tmp_path: Path) -> None:
    class Second(Model):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(UnsupportedError, match="LBFGS"):
        trainer(tmp_path, GradientLedger(tmp_path / "run")).fit(Second(), loader())
    assert not (tmp_path / "run").exists()

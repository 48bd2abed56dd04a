"""The callback anneals in real fits: planted blocks come back, a resumed run ends as an uninterrupted one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradtrace as gt
from gradtrace.callbacks import GradientLedger, StructuralAnnealing
from gradtrace.errors import GradtraceError, InvalidValueError, StateError

SMALL: Any = {"window_steps": 4, "entry_steps": 16}
BLOCKS, SIDE = 4, 5


@pytest.fixture(autouse=True)
def _only_our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for module in ("lightning", "torch"):
            warnings.filterwarnings("ignore", module=rf"{module}\b")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


class Steps(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> int:
        return index


class Model(LightningModule):
    """Learns from a teacher of four blocks behind permutations; what a step sees follows from its number."""

    def __init__(self, optimizers: int = 1, by: type[torch.optim.Optimizer] = torch.optim.Adam) -> None:
        super().__init__()
        torch.manual_seed(0)
        units = BLOCKS * SIDE
        self.net: Any = nn.Sequential(nn.Linear(units, 2 * units), nn.ReLU(), nn.Linear(2 * units, units))
        self.teacher = torch.randn(2, BLOCKS, SIDE, SIDE)
        self.places = torch.randperm(units), torch.randperm(units)
        self.automatic_optimization = optimizers == 1
        self.count, self.by, self.seen = optimizers, by, 0

    def said(self, x: Tensor) -> Tensor:
        parts = x[:, self.places[0]].reshape(-1, BLOCKS, SIDE)
        hidden = torch.einsum("khn,bkn->bkh", self.teacher[0], parts).relu()
        said = torch.einsum("koh,bkh->bko", self.teacher[1], hidden).flatten(1) / SIDE
        return torch.empty_like(said).index_copy_(1, self.places[1], said)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        x = torch.randn(64, BLOCKS * SIDE, generator=torch.Generator().manual_seed(self.global_step))
        loss = nn.functional.mse_loss(self.net(x), self.said(x))
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        if self.count == 1:
            return self.by(self.parameters(), lr=5e-3)  # type: ignore[call-arg]
        return [torch.optim.SGD(self.net[index].parameters(), lr=1e-2, momentum=0.9) for index in (0, 2)]


def fitted(model: Model, steps: int, *callbacks: Callback, **settings: Any) -> Trainer:
    ckpt = settings.pop("ckpt_path", None)
    plain: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), **(plain | settings))
    safe: Any = {"weights_only": True} if ckpt else {}
    trainer.fit(model, DataLoader(Steps(), batch_size=1), ckpt_path=ckpt, **safe)
    return trainer


def check_held(trainer: Trainer, model: Model, mask: gt.Mask) -> None:
    parameters = dict(model.named_parameters())
    for name, kept in mask.items():
        gone = torch.from_numpy(~kept)
        assert (parameters[name][gone] == 0).all()
        for optimizer in trainer.optimizers:
            for value in optimizer.state.get(parameters[name], {}).values():
                if isinstance(value, Tensor) and value.shape == gone.shape:
                    assert (value[gone] == 0).all()


def test_planted_blocks_come_back_and_are_converted(tmp_path: Path) -> None:
    model = Model()
    annealing = StructuralAnnealing(
        "blocks", blocks=BLOCKS, begin=0.4, end=0.7, path=tmp_path / "mask.safetensors"
    )
    trainer = fitted(model, 1500, GradientLedger(tmp_path / "run"), annealing)
    assert annealing.annealing is not None
    assert annealing.mask is not None
    assert annealing.annealing.progress.how == "components"
    inputs, _, outputs = annealing.annealing.progress.labels[0]
    planted = np.empty((2, BLOCKS * SIDE), np.int64)
    for row, places in zip(planted, model.places, strict=True):
        row[places.numpy()] = np.arange(BLOCKS * SIDE) // SIDE
    pairs = set(zip(np.concatenate([inputs, outputs]).tolist(), planted.ravel().tolist(), strict=True))
    assert len(pairs) == BLOCKS
    assert annealing.mask.density == pytest.approx(1 / BLOCKS)
    check_held(trainer, model, annealing.mask)
    x = torch.randn(500, BLOCKS * SIDE)
    with torch.no_grad():
        assert nn.functional.mse_loss(model.net(x), model.said(x)) < 0.02 * model.said(x).var()
    saved = gt.Mask.load(tmp_path / "mask.safetensors")
    assert saved == annealing.mask
    assert saved.provenance["structurally_annealed"]["blocks"] == BLOCKS
    plan = gt.plan(model, saved, tokens=64, refuse=False)
    converted = gt.convert_(copy.deepcopy(model), plan)
    assert set(plan.converted) == {"net.0", "net.2"}
    gt.verify(model.net, converted.net, x)


@pytest.mark.parametrize(
    "target",
    [
        {"structure": "element", "density": 0.3, "shape": "linear"},
        {"structure": "tile", "density": 0.4, "by": "magnitude"},
        {"structure": "rows", "density": 0.3, "l1": 1e-3},
        {"structure": "neuron", "density": 0.25},
        {"structure": "blocks", "blocks": 2, "group_lasso": 1e-3},
    ],
    ids=lambda target: target["structure"],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path, target: dict[str, Any]) -> None:
    def callbacks(folder: Path) -> tuple[GradientLedger, StructuralAnnealing, ModelCheckpoint]:
        keeper = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=17, save_top_k=-1)
        return (
            GradientLedger(folder, **SMALL),
            StructuralAnnealing(**target, begin=8, end=32, stages=6),
            keeper,
        )

    whole, first = Model(), callbacks(tmp_path / "run")
    trainer = fitted(whole, 60, *first)
    assert first[1].mask is not None
    check_held(trainer, whole, first[1].mask)
    resumed, second = Model(), callbacks(tmp_path / "run")
    fitted(resumed, 60, *second, ckpt_path=tmp_path / "step=17.ckpt")
    assert second[1].mask == first[1].mask
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


@pytest.mark.parametrize("structure", ["element", "tile", "rows", "neuron"])
def test_the_density_asked_for_is_reached_in_ever_smaller_masks(structure: str) -> None:
    seen: list[gt.Mask] = []

    class Look(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if annealing.mask is not None and (not seen or seen[-1] != annealing.mask):
                seen.append(annealing.mask)

    annealing = StructuralAnnealing(structure, density=0.3, begin=5, end=25, stages=5)
    fitted(Model(), 30, annealing, Look())
    assert 2 <= len(seen) <= 5
    for before, after in pairwise(seen):
        assert all((after[name] <= before[name]).all() for name in before)
    # Tiles of 16 x 16 are large for 20 x 40.
    assert seen[-1].density == pytest.approx(0.3, abs=0.12 if structure == "tile" else 0.03)


@pytest.mark.parametrize("optimizers", [1, 2])
def test_several_optimizers_and_accumulated_batches(optimizers: int) -> None:
    model = Model(optimizers)
    annealing = StructuralAnnealing("element", density=0.2, begin=0.25, end=0.75, stages=4)
    accumulated = {"accumulate_grad_batches": 3} if optimizers == 1 else {}
    trainer = fitted(model, 40, annealing, **accumulated)
    assert annealing.mask is not None
    assert annealing.mask.density == pytest.approx(0.2, abs=1e-3)
    check_held(trainer, model, annealing.mask)


def test_the_ledger_of_the_fit_decides(tmp_path: Path) -> None:
    class Deaf(Model):
        """Half of its inputs are never there, so that nothing leads from them."""

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            x = torch.randn(16, BLOCKS * SIDE)
            x[:, ::2] = 0
            return nn.functional.mse_loss(self.net(x), self.said(x))

    annealing = StructuralAnnealing("element", density=0.5, begin=0.2, end=0.9, stages=3)
    fitted(Deaf(), 40, GradientLedger(tmp_path / "run", **SMALL), annealing)
    assert annealing.mask is not None
    assert not annealing.mask["net.0.weight"][:, ::2].any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"structure": "blocks"}, "blocks"),
        ({"density": 0.3, "begin": 0.9, "end": 0.5}, "begin < end"),
        ({"density": 0.3, "begin": 50, "end": 20}, "begin < end"),
        ({"density": 0.3, "shape": "round"}, "shape"),
        ({"density": 0.3, "path": 7}, "mask path"),
    ],
)
def test_settings_are_checked_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        StructuralAnnealing(**settings)


def test_a_length_that_is_not_known_is_said_before_training() -> None:
    with pytest.raises(InvalidValueError, match="max_steps"):
        fitted(Model(), -1, StructuralAnnealing(density=0.3), max_epochs=-1)


def test_too_short_a_training_for_its_stages_is_said() -> None:
    with pytest.raises(InvalidValueError, match="fewer stages"):
        fitted(Model(), 10, StructuralAnnealing(density=0.3))


def test_a_criterion_without_its_ledger_is_said_at_the_first_stage() -> None:
    with pytest.raises(StateError, match="fisher-step"):
        fitted(Model(), 30, StructuralAnnealing(density=0.3, by="fisher-step", stages=3))


def test_what_the_ledger_leaves_out_is_said(tmp_path: Path) -> None:
    ledger = GradientLedger(tmp_path / "run", exclude="net.2.*", **SMALL)
    with pytest.raises(GradtraceError, match=r"net\.2\.weight"):
        fitted(Model(), 30, ledger, StructuralAnnealing(density=0.3, stages=3))


def test_a_training_that_ends_early_warns() -> None:
    with pytest.warns(UserWarning, match="stage 2 of 4"):
        fitted(Model(), 15, StructuralAnnealing("element", density=0.3, begin=5, end=25, stages=4))

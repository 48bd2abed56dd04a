"""What a ledger holds below the step, beside a loop over the samples of its watched steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import EmptyLedgerError, InvalidValueError, MismatchError, UnknownNameError
from gradtrace.ledger.merging import merge_ledger
from gradtrace.recorder.below.wanted import Word
from gradtrace.recorder.below.watched_steps import is_watched

ALL: tuple[Word, ...] = ("positions", "samples", "inputs", "gram")


class Bytes(nn.Module):
    """Rows 7 and 8 of the embedding never occur; the GRU has no formula."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(9, 4)
        self.mix = nn.Linear(4, 5)
        self.conv = nn.Conv1d(5, 6, 2, groups=1)
        self.rnn = nn.GRU(6, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.mix(self.embed(x)).relu()
        hidden, _ = self.rnn(self.conv(hidden.mT).mT)
        out: torch.Tensor = self.head(hidden)
        return out


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, x: torch.Tensor) -> Any:
    return model(x).square().mean()


def train(
    model: nn.Module,
    path: Path,
    *,
    begin: int = 0,
    end: int = 12,
    each: Callable[[int], None] = lambda step: None,
    **settings: Any,
) -> None:
    """At rate 0, so that a loop over samples can be taken at any time."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    defaults: dict[str, Any] = {
        "below": ALL,
        "below_every": 1,
        "window_steps": 2,
        "entry_steps": 4,
        "merge": False,
    }
    with gt.Recorder(model, path, **(defaults | settings)) as recorder:
        for step in range(begin, end):
            optimizer.zero_grad()
            loss_of(model, batch(step)).backward()
            each(step)
            recorder.observe(optimizer)
            optimizer.step()


def samples_of(model: nn.Module, steps: list[int]) -> dict[str, list[torch.Tensor]]:
    """Each sample's part of its step's gradient, over these steps."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for step in steps:
        for sample in batch(step):
            model.zero_grad()
            (loss_of(model, sample[None]) / 4).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                found[name].append(parameter.grad.clone())
    model.zero_grad()
    return found


def arrays_of(ledger: gt.Ledger) -> dict[str, np.ndarray[Any, Any]]:
    found = {
        f"{name} {accumulator}": getattr(ledger[name], accumulator)
        for name in ledger
        for accumulator in ledger.accumulators
        if not accumulator.startswith("input_") and ledger[name].offers(accumulator)
    }
    for module, inputs in ledger.inputs.items():
        found |= {f"{module} sum": inputs.sum, f"{module} sumsq": inputs.sumsq}
        if inputs.info.groups:
            found[f"{module} gram"] = inputs.gram
    return found


def test_samples_positions_and_inputs_of_all_steps_are_there(tmp_path: Path) -> None:
    model = Bytes()
    train(model, tmp_path / "run")
    ledger = gt.Ledger.open(tmp_path / "run")
    each = samples_of(model, list(range(12)))
    for name in ("embed.weight", "mix.weight", "mix.bias", "conv.weight", "head.weight", "head.bias"):
        record = ledger[name]
        gradients = torch.stack(each[name]).numpy()
        np.testing.assert_allclose(record.sample_sumsq, (gradients**2).sum(0), rtol=1e-4, atol=1e-12)
        assert (record.watched_steps, record.steps, record.samples) == (12, 12, 48)
        assert record.positions == 48 * (5 if name.split(".")[0] in ("conv", "head") else 6)
        assert (record.sample_support <= record.samples).all()
        assert (record.position_support <= record.positions).all()
        # No sum of contributions can exceed what their squares allow.
        bound = record.positions / record.steps * record.position_sumsq
        assert (record.grad_sumsq <= bound * (1 + 1e-5) + 1e-12).all()
    x = torch.cat([batch(step) for step in range(12)])
    rows = np.bincount(x.flatten(), minlength=9)
    np.testing.assert_array_equal(ledger.inputs["embed"].sum, rows)
    np.testing.assert_array_equal((ledger["embed.weight"].position_support > 0).any(1), rows > 0)
    with torch.no_grad():
        embedded = model.embed(x).reshape(-1, 4).double().numpy()
    mix = ledger.inputs["mix"]
    np.testing.assert_allclose(mix.mean, embedded.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(mix.second_moment, (embedded**2).mean(0), rtol=1e-5)
    np.testing.assert_allclose(mix.gram[0], embedded.T @ embedded, rtol=1e-4, atol=1e-5)
    assert (mix.positions, mix.watched_steps) == (288, 12)
    assert ledger.inputs["conv"].gram.shape == (1, 10, 10)
    np.testing.assert_allclose(
        np.diagonal(ledger.inputs["conv"].gram[0]), ledger.inputs["conv"].sumsq, rtol=1e-5
    )
    assert set(ledger.inputs) == {"embed", "mix", "conv", "head"}


def test_only_the_drawn_steps_count_and_resuming_draws_the_same(tmp_path: Path) -> None:
    drawn = [step for step in range(32) if is_watched(step, 4)]
    assert 3 <= len(drawn) <= 10
    model = Bytes()
    train(model, tmp_path / "whole", end=32, below_every=4)
    train(model, tmp_path / "parts", end=8, below_every=4)
    train(model, tmp_path / "parts", begin=8, end=32, below_every=4, mode="append")
    whole, parts = (gt.Ledger.open(tmp_path / name) for name in ("whole", "parts"))
    gradients = torch.stack(samples_of(model, drawn)["mix.weight"])
    np.testing.assert_allclose(
        whole["mix.weight"].sample_sumsq, gradients.square().sum(0).numpy(), rtol=1e-4, atol=1e-12
    )
    assert whole["mix.weight"].watched_steps == len(drawn)
    assert whole["mix.weight"].steps == 32
    expected = arrays_of(whole)
    for name, array in arrays_of(parts).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert [entry.details["watched"] for entry in parts.entries] == [
        entry.details["watched"] for entry in whole.entries
    ]


def test_what_has_no_formula_says_so_when_asked_for_more(tmp_path: Path) -> None:
    train(Bytes(), tmp_path / "run")
    record = gt.Ledger.open(tmp_path / "run")["rnn.weight_ih_l0"]
    assert record.watched_steps == 0
    assert record.grad_sumsq.any()
    assert record.offers("grad_sumsq")
    assert not record.offers("position_sumsq")
    with pytest.raises(UnknownNameError, match=r"rnn.weight_ih_l0.*no formula.*grad_sumsq"):
        _ = record.position_sumsq


def test_what_was_not_asked_for_says_how_to_get_it(tmp_path: Path) -> None:
    train(Bytes(), tmp_path / "run", below="inputs")
    ledger = gt.Ledger.open(tmp_path / "run")
    with pytest.raises(UnknownNameError, match='below="positions"'):
        _ = ledger["mix.weight"].position_sumsq
    with pytest.raises(UnknownNameError, match='below="gram"'):
        _ = ledger.inputs["mix"].gram
    train(Bytes(), tmp_path / "plain", below=())
    plain = gt.Ledger.open(tmp_path / "plain")
    assert dict(plain.inputs) == {}
    assert plain["mix.weight"].watched_steps == 0
    assert all("watched" not in entry.details for entry in plain.entries)


def test_merging_keeps_what_lies_below_the_step(tmp_path: Path) -> None:
    train(Bytes(), tmp_path / "run", end=40, below_every=4)
    before = gt.Ledger.open(tmp_path / "run")
    arrays, counts = arrays_of(before), before["mix.weight"].positions
    assert merge_ledger(tmp_path / "run")
    after = gt.Ledger.open(tmp_path / "run")
    assert len(after.entries) < len(before.entries)
    for name, array in arrays_of(after).items():
        np.testing.assert_allclose(array, arrays[name], rtol=1e-5, err_msg=name)
    assert after["mix.weight"].positions == counts
    assert after.inputs["mix"].positions == counts
    with pytest.raises(UnknownNameError, match="no formula"):
        _ = after["rnn.weight_ih_l0"].position_sumsq


def test_going_on_with_other_evidence_is_refused(tmp_path: Path) -> None:
    train(Bytes(), tmp_path / "run", below="positions")
    with pytest.raises(MismatchError, match=r"position_sumsq, position_support.*below="):
        train(Bytes(), tmp_path / "run", begin=12, end=14, below="samples", mode="append")


def test_steps_that_the_scaler_skips_and_non_finite_ones_are_not_counted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    expected = np.zeros((3, 4))
    with gt.Recorder(model, tmp_path / "run", below="samples", below_every=1) as recorder:
        for step in range(8):
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            if step in (3, 6):
                x = x * float("inf")
            scaler.scale(loss_of(model, x)).backward()
            if step % 2:
                scaler.unscale_(optimizer)
            recorder.observe(optimizer, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
    for step in set(range(8)) - {3, 6}:
        for one in torch.randn(5, 4, generator=torch.Generator().manual_seed(step)):
            model.zero_grad()
            (loss_of(model, one[None]) / 5).backward()
            weight = model.get_parameter("0.weight").grad
            assert weight is not None
            expected += weight.double().numpy() ** 2
    record = gt.Ledger.open(tmp_path / "run")["0.weight"]
    assert (record.skipped, record.watched_steps, record.samples) == (2, 6, 30)
    np.testing.assert_allclose(record.sample_sumsq, expected, rtol=1e-4)


def test_contributions_that_are_not_finite_are_left_out_where_they_are(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gt.Recorder(model, tmp_path / "run", below=ALL, below_every=1) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            spoiled = torch.randn(5, 4)
            spoiled[2, 1] = float("nan") if step in (0, 2) else 1.0
            (loss_of(model["a"], torch.randn(5, 4)) + loss_of(model["b"], spoiled)).backward()
            recorder.observe(optimizer)
    ledger = gt.Ledger.open(tmp_path / "run")
    assert [ledger[f"{name}.weight"].watched_steps for name in "ab"] == [4, 2]
    assert [ledger.inputs[name].positions for name in "ab"] == [20, 10]
    for name in ledger:
        assert np.isfinite(ledger[name].position_sumsq).all()
    assert np.isfinite(ledger.inputs["b"].gram).all()


def test_a_parameter_that_thaws_is_watched_from_then_on(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gt.Recorder(
        model, tmp_path / "run", below=ALL, below_every=1, window_steps=2, entry_steps=4
    ) as recorder:
        for step in range(6):
            if step == 3:
                model[0].weight.requires_grad_(True)
            optimizer.zero_grad()
            loss_of(model, torch.randn(5, 4)).backward()
            recorder.observe(optimizer)
    ledger = gt.Ledger.open(tmp_path / "run")
    assert (ledger["0.bias"].watched_steps, ledger["1.weight"].watched_steps) == (6, 6)
    assert ledger["0.weight"].watched_steps == ledger["0.weight"].steps - 1
    assert ledger.inputs["1"].positions == 30


def test_moments_of_inputs_never_seen_are_no_number(tmp_path: Path) -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gt.Recorder(model, tmp_path / "run", below="inputs", below_every=1) as recorder:
        loss_of(model["used"], torch.randn(5, 3)).backward()
        recorder.observe(optimizer)
    inputs = gt.Ledger.open(tmp_path / "run").inputs
    assert inputs["used"].positions == 5
    with pytest.raises(EmptyLedgerError, match="'unused'"):
        _ = inputs["unused"].mean


@pytest.mark.parametrize(
    "wrong",
    [
        {"below": "tokens"},
        {"below": 3},
        {"below": "positions", "below_every": 0},
        {"below": "positions", "below_every": 12},
    ],
)
def test_settings_that_mean_nothing_are_refused_at_once(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=r"below|below_every"):
        gt.Recorder(Bytes(), tmp_path / "run", **wrong)


def test_closing_takes_every_hook_away(tmp_path: Path) -> None:
    model = Bytes()
    train(model, tmp_path / "run", end=2)
    assert not any(module._forward_hooks for module in model.modules())

"""The recorder in a plain PyTorch loop, beside a float64 loop over the same gradients."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import (
    InvalidValueError,
    LedgerBusyError,
    LedgerExistsError,
    LedgerNotFoundError,
    MismatchError,
    StateError,
    StorageError,
    UnsupportedError,
)
from gradtrace.kernels.accumulate import accumulate_
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder import recorder as recorder_module
from gradtrace.recorder import stream

Loop = Callable[[nn.Module], Any]


class Net(nn.Module):
    """Odd sizes, a part that can be left out, and a scale parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.side = nn.Linear(7, 5)
        self.norm = nn.LayerNorm(5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, side: bool = True) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        if side:
            hidden = hidden + self.side(x)
        out: torch.Tensor = self.last(self.norm(hidden))
        return out


def batch(step: int, rows: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(rows, 7, generator=generator)
    x[:, 2] = 0.0
    return x


def train(
    model: nn.Module,
    recorder: gt.Recorder,
    loop: Any = None,
    *,
    begin: int = 0,
    steps: int = 10,
    optimizer: torch.optim.Optimizer | None = None,
    spoil: Callable[[int], None] | None = None,
    **forward: Callable[[int], bool],
) -> None:
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(begin, begin + steps):
        optimizer.zero_grad()
        model(
            batch(step), **{name: given(step) for name, given in forward.items()}
        ).square().mean().backward()
        if spoil is not None:
            spoil(step)
        if loop is not None:
            loop.observe()
        recorder.observe(optimizer)
        optimizer.step()


def test_sums_equal_a_float64_loop_over_ragged_windows(tmp_path: Path, gradient_loop: Loop) -> None:
    model = Net()
    loop = gradient_loop(model)
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        train(model, recorder, loop, steps=21)
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    assert [(entry.begin, entry.end, entry.windows) for entry in ledger.entries] == [
        (0, 8, 2),
        (8, 16, 2),
        (16, 21, 2),
    ]
    assert (ledger["first.weight"].events[:, 2] == 0).all()


def test_window_sums_of_squares_and_votes_are_of_window_sums(tmp_path: Path) -> None:
    model = Net()
    windows: list[np.ndarray] = []
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for step in range(10):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            if step % 4 == 0:
                windows.append(np.zeros((3, 5)))
            assert model.last.weight.grad is not None
            windows[-1] += model.last.weight.grad.double().numpy()
            recorder.observe(optimizer)
            optimizer.step()
    record = gt.Ledger.open(tmp_path / "run")["last.weight"]
    np.testing.assert_allclose(record.window_sumsq, sum(w**2 for w in windows), rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(record.window_votes, sum(np.sign(w) for w in windows))
    assert record.windows == 3


def test_a_module_unused_in_some_steps_is_counted_as_missing_there(
    tmp_path: Path, gradient_loop: Loop
) -> None:
    model = Net()
    loop = gradient_loop(model)
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        train(model, recorder, loop, steps=13, side=lambda step: step % 3 == 0)
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    assert (ledger["side.weight"].steps, ledger["side.weight"].missing) == (5, 8)


def test_non_finite_elements_add_nothing_and_are_counted(tmp_path: Path, gradient_loop: Loop) -> None:
    model = Net()
    loop = gradient_loop(model)

    def spoil(step: int) -> None:
        assert model.first.weight.grad is not None
        assert model.last.bias.grad is not None
        if step in (2, 5):
            model.first.weight.grad[1, 1] = float("nan")
        if step == 5:
            model.last.bias.grad[0] = float("-inf")

    # Plain SGD at rate 0 keeps the weights finite, so that the later steps have something to show.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        train(model, recorder, loop, steps=9, optimizer=optimizer, spoil=spoil)
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    found = {name: ledger[name].nonfinite for name in ledger}
    assert {name: count for name, count in found.items() if count} == {"first.weight": 2, "last.bias": 1}


def test_all_zero_gradients_are_counted_apart(tmp_path: Path) -> None:
    model = Net()

    def spoil(step: int) -> None:
        assert model.side.weight.grad is not None
        if step < 4:
            model.side.weight.grad.zero_()

    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        train(model, recorder, spoil=spoil)
    ledger = gt.Ledger.open(tmp_path / "run")
    assert (ledger["side.weight"].zero, ledger["side.weight"].steps) == (4, 10)
    assert ledger["first.weight"].zero == 0


@pytest.mark.parametrize("unscale_first", [True, False])
def test_fp16_scaler_skips_are_counted_and_gradients_recorded_unscaled(
    tmp_path: Path, gradient_loop: Loop, unscale_first: bool
) -> None:
    model = Net()
    loop = gradient_loop(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        for step in range(11):
            optimizer.zero_grad()
            scaler.scale(model(batch(step)).square().mean()).backward()
            if step in (3, 7):
                assert model.first.weight.grad is not None
                model.first.weight.grad[0, 0] = float("inf")
            scale = scaler.get_scale()
            if unscale_first:
                scaler.unscale_(optimizer)
            if step not in (3, 7):
                loop.observe(divide_by=1.0 if unscale_first else scale)
            recorder.observe(optimizer, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    assert {ledger[name].skipped for name in ledger} == {2}
    assert sum(update.steps for update in ledger["last.weight"].history) == 9


def test_two_optimizers_each_record_their_own_parameters(tmp_path: Path, gradient_loop: Loop) -> None:
    model = Net()
    loop = gradient_loop(model)
    first = torch.optim.SGD([*model.first.parameters(), *model.side.parameters()], lr=1e-2)
    second = torch.optim.AdamW(
        [*model.norm.parameters(), *model.last.parameters()], lr=1e-3, weight_decay=0.1
    )
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        for step in range(9):
            model.zero_grad()
            model(batch(step)).square().mean().backward()
            for optimizer in (first, second) if step % 2 else (first,):
                loop.observe(only={id(p) for group in optimizer.param_groups for p in group["params"]})
                recorder.observe(optimizer)
                optimizer.step()
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    assert ledger.steps == 13
    assert [update.kind for update in ledger["last.bias"].history] == ["AdamW"] * len(
        ledger["last.bias"].history
    )
    assert {update.settings["weight_decay"] for update in ledger["last.bias"].history} == {0.1}
    assert sum(update.steps for update in ledger["first.bias"].history) == 9


def test_learning_rates_are_kept_as_runs(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        for rate, steps in ((0.1, 5), (0.01, 6)):
            optimizer.param_groups[0]["lr"] = rate
            train(model, recorder, steps=steps, optimizer=optimizer)
    history = gt.Ledger.open(tmp_path / "run")["last.weight"].history
    assert [(update.steps, update.settings["lr"]) for update in history] in (
        [(5, 0.1), (3, 0.01), (3, 0.01)],
        [(5, 0.1), (6, 0.01)],
    )


def test_a_parameter_that_thaws_is_recorded_from_then_on(tmp_path: Path) -> None:
    model = Net()
    model.last.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        train(model, recorder, steps=5, optimizer=optimizer)
        model.last.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.last.parameters())})
        opening = model.last.weight.detach().clone().numpy()
        train(model, recorder, begin=5, steps=6, optimizer=optimizer)
    ledger = gt.Ledger.open(tmp_path / "run")
    assert (ledger["first.weight"].steps, ledger["last.weight"].steps) == (11, 6)
    np.testing.assert_array_equal(ledger["last.weight"].opening, opening)
    assert [(entry.begin, entry.end) for entry in ledger.entries] == [(0, 5), (5, 8), (8, 11)]


def test_frozen_parameters_are_left_out(tmp_path: Path) -> None:
    model = Net()
    model.first.requires_grad_(False)
    with gt.Recorder(model, tmp_path / "run") as recorder:
        train(model, recorder)
    assert not [name for name in gt.Ledger.open(tmp_path / "run") if name.startswith("first")]


def test_tied_weights_are_recorded_once_and_both_names_resolve(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 5)
            self.head = nn.Linear(5, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.embed(x))
            return out

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gt.Recorder(model, tmp_path / "run") as recorder:
        model(torch.tensor([[1, 2, 3]])).sum().backward()
        recorder.observe(optimizer)
    ledger = gt.Ledger.open(tmp_path / "run")
    assert list(ledger) == ["embed.weight"]
    np.testing.assert_array_equal(ledger["head.weight"].events, ledger["embed.weight"].events)


def test_the_opening_balance_is_the_weights_before_the_first_step(tmp_path: Path) -> None:
    model = Net()
    before = {name: p.detach().clone().numpy() for name, p in model.named_parameters()}
    with gt.Recorder(model, tmp_path / "run") as recorder:
        train(model, recorder)
    ledger = gt.Ledger.open(tmp_path / "run")
    for name, weights in before.items():
        np.testing.assert_array_equal(ledger[name].opening, weights)


def test_compiled_and_wrapped_models_keep_their_plain_names(tmp_path: Path) -> None:
    model = Net()
    compiled: Any = torch.compile(model, backend="eager")
    with gt.Recorder(compiled, tmp_path / "run") as recorder:
        train(model, recorder)
    assert list(gt.Ledger.open(tmp_path / "run")) == [name for name, _ in model.named_parameters()]


def test_fused_optimizers_are_recorded(tmp_path: Path, gradient_loop: Loop) -> None:
    model = Net()
    loop = gradient_loop(model)
    with gt.Recorder(model, tmp_path / "run") as recorder:
        train(model, recorder, loop, optimizer=torch.optim.AdamW(model.parameters(), fused=True))
    loop.check(gt.Ledger.open(tmp_path / "run"))


def test_include_and_exclude_choose_what_is_recorded(tmp_path: Path) -> None:
    model = Net()
    with gt.Recorder(model, tmp_path / "run", include=["first.*", "last.*"], exclude="*.bias") as recorder:
        train(model, recorder)
    assert list(gt.Ledger.open(tmp_path / "run")) == ["first.weight", "last.weight"]


def test_append_goes_on_and_overwrite_begins_again(tmp_path: Path, gradient_loop: Loop) -> None:
    model = Net()
    loop = gradient_loop(model)
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        train(model, recorder, loop, steps=6)
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8, mode="append") as recorder:
        train(model, recorder, loop, steps=7)
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    assert ledger.steps == 13
    with gt.Recorder(model, tmp_path / "run", mode="overwrite") as recorder:
        train(model, recorder, steps=3)
    assert gt.Ledger.open(tmp_path / "run").steps == 3


@pytest.mark.parametrize("shape", [(7, 4), (5, 7)], ids=["another size", "as many weights"])
def test_going_on_with_a_model_of_another_shape_is_refused_by_name(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    def record(model: nn.Linear, mode: Literal["append"] | None) -> None:
        with gt.Recorder(model, tmp_path / "run", mode=mode) as recorder:
            model(torch.ones(2, model.in_features)).square().mean().backward()
            recorder.observe(torch.optim.SGD(model.parameters()))

    record(nn.Linear(7, 5, bias=False), None)
    with pytest.raises(MismatchError, match=r"'weight'.*\(5, 7\).*another path"):
        record(nn.Linear(*shape, bias=False), "append")
    assert gt.Ledger.open(tmp_path / "run").steps == 1
    record(nn.Linear(7, 5, bias=False), "append")
    assert gt.Ledger.open(tmp_path / "run").steps == 2


def test_append_begins_a_ledger_where_a_killed_creation_left_its_lock(
    tmp_path: Path, gradient_loop: Loop
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "writer.lock").touch()
    (tmp_path / "run" / "zarr.json.0af3.partial").write_text('{"zarr_for')
    model = Net()
    loop = gradient_loop(model)
    with gt.Recorder(model, tmp_path / "run", mode="append", resume_at=0) as recorder:
        train(model, recorder, loop)
    loop.check(gt.Ledger.open(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_resuming_voids_what_came_after_says_so_and_equals_an_uninterrupted_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(path: Path, interrupted: bool) -> gt.Ledger:
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        settings: dict[str, Any] = {"window_steps": 4, "entry_steps": 8}
        recorder = gt.Recorder(model, path, **settings)
        train(model, recorder, steps=9, optimizer=optimizer)
        assert recorder.commit() == 9
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        if interrupted:
            train(model, recorder, begin=9, steps=5, optimizer=optimizer)
            recorder.close()
            model.load_state_dict(weights)
            recorder = gt.Recorder(model, path, mode="append", resume_at=9, **settings)
        train(model, recorder, begin=9, steps=8, optimizer=optimizer)
        recorder.close()
        return gt.Ledger.open(path)

    whole, resumed = run(tmp_path / "whole", False), run(tmp_path / "resumed", True)
    assert [record.getMessage() for record in caplog.records] == [
        f"steps 9 to 14 of the ledger {tmp_path / 'resumed'} are void: the run goes on before them"
    ]
    assert [(e.begin, e.end) for e in whole.entries] == [(e.begin, e.end) for e in resumed.entries]
    for name in whole:
        np.testing.assert_array_equal(whole[name].grad_sum, resumed[name].grad_sum)
        np.testing.assert_array_equal(whole[name].window_sumsq, resumed[name].window_sumsq)
        np.testing.assert_array_equal(whole[name].events, resumed[name].events)
        np.testing.assert_array_equal(whole[name].opening, resumed[name].opening)


def test_resuming_where_no_ledger_is_left_is_an_error_and_not_a_new_run(tmp_path: Path) -> None:
    model = Net()
    with gt.Recorder(model, tmp_path / "gone", mode="append", resume_at=6) as recorder:
        for _ in range(2):
            with pytest.raises(LedgerNotFoundError, match="resuming at step 6"):
                train(model, recorder, steps=1)
    assert not os.listdir(tmp_path)


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    with gt.Recorder(Net(), tmp_path / "run") as recorder:
        assert recorder.commit() == 0
    assert not os.listdir(tmp_path)


def test_leaving_the_context_by_an_error_commits_what_was_recorded(tmp_path: Path) -> None:
    model = Net()
    recorder = gt.Recorder(model, tmp_path / "run")

    def interrupted() -> None:
        with recorder:
            train(model, recorder, steps=3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert gt.Ledger.open(tmp_path / "run").steps == 3


@pytest.mark.parametrize("step", [1, 3, 4], ids=["first", "amid a window", "last of a window"])
def test_an_interrupt_while_a_step_is_recorded_leaves_it_counted_and_the_recorder_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    calls = iter(range(1, 100))
    accumulate = accumulate_

    def interrupted(*args: Any, **kwargs: Any) -> None:
        accumulate(*args, **kwargs)
        if next(calls) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(recorder_module, "accumulate_", interrupted)
    model = Net()
    with gt.Recorder(model, tmp_path / "run", window_steps=4, entry_steps=8) as recorder:
        with pytest.raises(KeyboardInterrupt):
            train(model, recorder)
        train(model, recorder, steps=6)
    ledger = gt.Ledger.open(tmp_path / "run")
    bias = ledger["last.bias"]
    assert ledger.steps == bias.steps == bias.events.max() == step + 6


def test_the_summary_counts_what_never_had_an_event_across_sessions(tmp_path: Path) -> None:
    model = Net()
    for mode in (None, "append"):
        with gt.Recorder(model, tmp_path / "run", mode=mode) as recorder:
            train(model, recorder, steps=5)
        summary = recorder.summary()
    ledger = gt.Ledger.open(tmp_path / "run")
    never = {name: (int((ledger[name].events == 0).sum()), ledger[name].events.size) for name in ledger}
    assert dict(summary.parameters) == never
    assert summary.steps == 10
    assert summary.metrics()["ledger/never_supported/first.weight"] == pytest.approx(
        never["first.weight"][0] / 35
    )
    assert "first.weight" in str(summary)


def test_on_a_slow_disk_entries_grow_longer_and_nothing_is_dropped(
    tmp_path: Path, gradient_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LedgerWriter.commit_entry

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)
        return written(*args, **kwargs)

    monkeypatch.setattr(LedgerWriter, "commit_entry", slow)
    monkeypatch.setattr(stream, "_GRACE", 0.0)
    model = Net()
    loop = gradient_loop(model)
    with gt.Recorder(model, tmp_path / "run", window_steps=2, entry_steps=4, merge=False) as recorder:
        train(model, recorder, loop, steps=61)
    ledger = gt.Ledger.open(tmp_path / "run")
    loop.check(ledger)
    passed = sum(entry.details.get("passed_cuts", 0) for entry in ledger.entries)
    assert passed > 0
    assert len(ledger.entries) + passed == 16


def test_an_entry_that_cannot_be_written_stops_the_training_with_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise StorageError("writing the entry failed: no space left on device")

    model = Net()
    recorder = gt.Recorder(model, tmp_path / "run", window_steps=2, entry_steps=4)
    train(model, recorder, steps=4)
    recorder.commit()
    monkeypatch.setattr(LedgerWriter, "commit_entry", full)
    with pytest.raises(StorageError, match="no space left"):
        train(model, recorder, steps=200)
    with pytest.raises(StorageError, match="no space left"):
        recorder.close()
    monkeypatch.undo()
    assert gt.Ledger.open(tmp_path / "run").steps == 4
    with gt.Recorder(model, tmp_path / "run", mode="append") as again:
        train(model, again, steps=2)
    assert gt.Ledger.open(tmp_path / "run").steps == 6


def test_the_writers_thread_ends_with_the_recorder(tmp_path: Path) -> None:
    model, others = Net(), set(threading.enumerate())
    with gt.Recorder(model, tmp_path / "run") as recorder:
        train(model, recorder, steps=2)
        own = {one for one in threading.enumerate() if one.name.startswith("gradtrace")} - others
        assert own
    assert not own & set(threading.enumerate())


def test_an_existing_ledger_needs_a_mode(tmp_path: Path) -> None:
    model = Net()
    with gt.Recorder(model, tmp_path / "run") as recorder:
        train(model, recorder, steps=2)
    with pytest.raises(LedgerExistsError, match=r"append.*overwrite"):
        gt.Recorder(model, tmp_path / "run")


@pytest.mark.parametrize("mode", [None, "append", "overwrite"])
def test_a_foreign_folder_is_never_touched(tmp_path: Path, mode: Any) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(LedgerExistsError):
        gt.Recorder(Net(), tmp_path / "run", mode=mode)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_a_second_recorder_on_the_same_ledger_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    model = Net()
    with gt.Recorder(model, tmp_path / "run") as recorder:
        train(model, recorder, steps=2)
        with pytest.raises(LedgerBusyError), gt.Recorder(model, tmp_path / "run", mode="append") as second:
            train(model, second, steps=1)
        train(model, recorder, steps=2)
    assert gt.Ledger.open(tmp_path / "run").steps == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window_steps": 0}, "window_steps"),
        ({"window_steps": "8"}, "window_steps"),
        ({"window_steps": 8.5}, "window_steps"),
        ({"entry_steps": "512"}, "entry_steps"),
        ({"threshold": "x"}, "threshold"),
        ({"window_steps": 40000, "entry_steps": 40000}, "32767"),
        ({"entry_steps": 33}, "multiple"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": -1.0}, "threshold"),
        ({"mode": "replace"}, "append"),
        ({"include": "frist.*"}, "first"),
        ({"exclude": "*"}, "at least one parameter"),
        ({"resume_at": 3}, "append"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidValueError, match=said):
        gt.Recorder(Net(), tmp_path / "run", **settings)
    assert not os.listdir(tmp_path)


def test_sparse_embeddings_are_refused_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    with pytest.raises(UnsupportedError, match=r"'0\.weight'.*sparse"):
        gt.Recorder(model, tmp_path / "run")
    gt.Recorder(model, tmp_path / "run", exclude="0.weight")


def test_lazy_and_meta_and_complex_parameters_are_refused_by_name(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.LazyLinear(3)
    with pytest.raises(UnsupportedError, match="'weight' is not initialised"):
        gt.Recorder(lazy, tmp_path / "run")
    with pytest.raises(UnsupportedError, match="meta device"):
        gt.Recorder(nn.Linear(3, 2, device="meta"), tmp_path / "run")
    with pytest.raises(UnsupportedError, match="complex64"):
        gt.Recorder(nn.Linear(3, 2, dtype=torch.complex64), tmp_path / "run")


def test_lbfgs_is_refused_by_name(tmp_path: Path) -> None:
    model = Net()
    with gt.Recorder(model, tmp_path / "run") as recorder, pytest.raises(UnsupportedError, match="LBFGS"):
        recorder.observe(torch.optim.LBFGS(model.parameters()))


def test_ten_steps_without_any_gradient_are_an_error(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gt.Recorder(model, tmp_path / "run") as recorder:
        for _ in range(9):
            recorder.observe(optimizer)
        with pytest.raises(UnsupportedError, match="no recorded parameter had a gradient"):
            recorder.observe(optimizer)


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    other = Net()
    other(batch(0)).sum().backward()
    with (
        gt.Recorder(Net(), tmp_path / "run") as recorder,
        pytest.raises(StateError, match="none of its parameters"),
    ):
        recorder.observe(torch.optim.SGD(other.parameters(), lr=0.1))


def test_observing_after_close_is_an_error(tmp_path: Path) -> None:
    model = Net()
    recorder = gt.Recorder(model, tmp_path / "run")
    recorder.close()
    with pytest.raises(StateError, match="append"):
        recorder.observe(torch.optim.SGD(model.parameters(), lr=0.1))


def test_double_precision_gradients_below_float32_are_still_events(tmp_path: Path) -> None:
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gt.Recorder(model, tmp_path / "run") as recorder:
        model.weight.grad = torch.full((2, 3), 1e-60, dtype=torch.float64)
        recorder.observe(optimizer)
    assert (gt.Ledger.open(tmp_path / "run")["weight"].events == 1).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"model": "net"}, "model: expected an nn.Module, got str"), ({"merge": "no"}, "merge")],
)
def test_what_a_recorder_cannot_take_is_refused_by_name(
    tmp_path: Path, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidValueError, match=named):
        gt.Recorder(**dict[str, Any](model=nn.Linear(2, 2), path=tmp_path / "run") | wrong)

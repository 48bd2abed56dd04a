"""With `overhead=` events stay exact and sums unbiased, and each commit tells how it was sampled."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.merging import merge_ledger
from gradtrace.ledger.reader import Ledger
from gradtrace.recorder.background import Background
from gradtrace.recorder.budget import Budget
from gradtrace.recorder.recorder import Recorder
from gradtrace.recorder.sampling import drawn, drawn_in

STRIDES = [1, 2, 4, 8, 16, 32, 64]
# Seconds of counting events, of adding up too, and from step to step: at overhead=0.03 a stride of 8.
COSTS = (1.0, 10.0, 100.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a budget measures is no longer the machine's business."""
    monkeypatch.setattr(Budget, "_measured", lambda self: COSTS)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 5))


def gradient(step: int) -> torch.Tensor:
    """With a mean that is not zero, and with zeros."""
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(6, 5, generator=generator) + 0.5
    return values * (torch.rand(6, 5, generator=generator) > 0.3)


def record(path: Path, steps: int, overhead: float | None, begin: int = 0, entry_steps: int = 64) -> Ledger:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    mode = "append" if begin else None
    with Recorder(
        net,
        path,
        window_steps=16,
        entry_steps=entry_steps,
        merge=False,
        overhead=overhead,
        mode=mode,  # type: ignore[arg-type]
    ) as recorder:
        for step in range(begin, begin + steps):
            net.weight.grad = gradient(step)
            recorder.observe(optimizer)
    return Ledger.open(path)


def expected(ledger: Ledger) -> dict[str, np.ndarray]:
    """The sums that the ledger's own account of its sampling promises, in float64."""
    sums = {name: np.zeros((6, 5)) for name in ("grad_sum", "grad_sumsq", "votes", "events")}
    for entry in ledger.entries:
        for step in range(entry.begin, entry.end):
            grad = gradient(step).double().numpy()
            stride = entry.sampling.stride
            assert stride is not None
            weight = stride if drawn(step, stride) else 0
            sums["grad_sum"] += weight * grad
            sums["grad_sumsq"] += weight * grad**2
            sums["votes"] += weight * np.sign(grad)
            sums["events"] += grad != 0
    return sums


@pytest.mark.usefixtures("measured")
def test_sums_are_those_of_the_sampled_steps_and_events_those_of_all(tmp_path: Path) -> None:
    ledger = record(tmp_path / "a", 200, 0.03)
    weight, sums = ledger["weight"], expected(ledger)
    np.testing.assert_array_equal(weight.events, sums["events"])
    np.testing.assert_array_equal(weight.votes, sums["votes"])
    np.testing.assert_allclose(weight.grad_sum, sums["grad_sum"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(weight.grad_sumsq, sums["grad_sumsq"], rtol=1e-5)
    assert (weight.steps, weight.zero) == (200, 0)


@pytest.mark.usefixtures("measured")
def test_the_first_window_is_learned_from_and_each_commit_tells_its_sampling(tmp_path: Path) -> None:
    ledger = record(tmp_path / "a", 200, 0.03)
    assert [(entry.begin, entry.end, entry.sampling.stride) for entry in ledger.entries] == [
        (0, 16, 2),
        (16, 64, 8),
        (64, 128, 8),
        (128, 192, 8),
        (192, 200, 8),
    ]
    for entry in ledger.entries:
        assert entry.sampling.steps == drawn_in(entry.begin, entry.end, entry.sampling.stride or 0)
    assert ledger.settings["overhead"] == 0.03


@pytest.mark.usefixtures("measured")
def test_estimates_fall_around_the_full_sums_as_their_standard_errors_say(tmp_path: Path) -> None:
    steps, stride = 6000, 8
    full = record(tmp_path / "full", steps, None, entry_steps=1600)["weight"]
    sampled = record(tmp_path / "sampled", steps, 0.03, entry_steps=1600)["weight"]
    grads = np.stack([gradient(step).double().numpy() for step in range(steps)])
    for name, power in (("grad_sum", 1), ("grad_sumsq", 2), ("votes", 0)):
        values = grads**power if power else np.sign(grads)
        error = np.sqrt((stride - 1) * (values**2).sum(axis=0))
        z = (getattr(sampled, name) - getattr(full, name)) / error
        assert np.abs(z).max() < 4.5, name
        assert np.abs(z).max() > 0.1, name  # it is an estimate, after all
    np.testing.assert_array_equal(sampled.events, full.events)


@pytest.mark.usefixtures("measured")
def test_a_repeated_run_samples_the_same_steps(tmp_path: Path) -> None:
    first, again = (record(tmp_path / name, 100, 0.03) for name in "ab")
    assert [entry.sampling for entry in first.entries] == [entry.sampling for entry in again.entries]
    for name in first.accumulators:
        np.testing.assert_array_equal(getattr(first["weight"], name), getattr(again["weight"], name))


@pytest.mark.usefixtures("measured")
def test_entries_of_different_strides_merge_into_one_that_holds_their_sums(tmp_path: Path) -> None:
    record(tmp_path / "a", 64, 0.03, entry_steps=32)
    record(tmp_path / "a", 600, None, begin=64, entry_steps=32)
    before = Ledger.open(tmp_path / "a")
    kept = {name: getattr(before["weight"], name) for name in before.accumulators}
    merge_ledger(tmp_path / "a")
    after = Ledger.open(tmp_path / "a")
    assert len(after.entries) < len(before.entries)
    assert after.entries[0].sampling.stride is None
    assert sum(e.sampling.steps for e in after.entries) == sum(e.sampling.steps for e in before.entries)
    for name, values in kept.items():
        np.testing.assert_allclose(getattr(after["weight"], name), values, rtol=1e-6, err_msg=name)


def test_without_it_nothing_is_sampled_and_the_settings_do_not_name_it(tmp_path: Path) -> None:
    ledger = record(tmp_path / "a", 40, None)
    assert "overhead" not in ledger.settings
    assert [(entry.sampling.stride, entry.sampling.steps) for entry in ledger.entries] == [(1, 40)]


def test_a_real_clock_finds_a_stride_of_the_allowed_ones(tmp_path: Path) -> None:
    ledger = record(tmp_path / "a", 100, 0.001)
    assert {entry.sampling.stride for entry in ledger.entries[1:]} <= set(STRIDES)
    np.testing.assert_array_equal(ledger["weight"].events, expected(ledger)["events"])


@pytest.mark.parametrize(
    ("overhead", "stride"), [(0.2, 1), (0.1, 1), (0.09, 2), (0.056, 2), (0.03, 8), (0.0105, 64)]
)
@pytest.mark.usefixtures("measured")
def test_the_stride_is_the_least_that_fits(overhead: float, stride: int) -> None:
    budget = Budget(overhead, window_steps=32)
    budget.background = 0.0
    assert budget.brought() == (stride, 0, True)


@pytest.mark.parametrize(("background", "stride"), [(None, 2), (0.0, 1), (1.0, 2), (6.0, 4), (20.0, 64)])
@pytest.mark.usefixtures("measured")
def test_what_the_ledgers_threads_take_is_off_the_budget_and_a_quarter_of_it_before_that_is_known(
    background: float | None, stride: int
) -> None:
    budget = Budget(0.1, window_steps=32)
    budget.background = background
    assert budget.brought() == (stride, 0, True)


def test_the_background_is_told_a_step_once_an_entry_was_committed() -> None:
    background = Background()
    with background.timing("window"):
        sum(range(200_000))
    assert background.seconds_a_step(32, 512) is None
    with background.timing("commit"):
        time.sleep(0.2)  # waiting for a disk takes nothing from the training
    known = background.seconds_a_step(1, 512)
    assert known is not None
    assert 0.0 < known < 0.2
    assert background.seconds_a_step(32, 512) == pytest.approx(known / 32, rel=0.5)


def test_a_recording_knows_its_background_after_its_first_entries(tmp_path: Path) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Recorder(net, tmp_path / "a", window_steps=4, entry_steps=8, overhead=0.1) as recorder:
        for step in range(8):
            net.weight.grad = gradient(step)
            recorder.observe(optimizer)
        recorder.commit()
        for step in range(8, 16):
            net.weight.grad = gradient(step)
            recorder.observe(optimizer)
        assert recorder._budget.background is not None
        assert recorder._budget.background > 0.0


@pytest.mark.usefixtures("measured")
def test_watched_steps_get_half_of_the_budget_and_sums_what_is_left() -> None:
    budget = Budget(0.1, window_steps=32, below_every=16)
    budget.background = 0.0
    budget._watched.extend([1010.0, 190.0, 2000.0])  # the median takes 900 longer than another step
    assert budget.every == 16
    # 900 / 180 is half of 0.1 * 100, and 256 the next power of two; 1 + 9 / 2 fits into what is left.
    assert budget.brought() == (2, 256, True)


def test_watching_stays_as_rare_as_it_was_asked_for_where_time_is_left(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Recorder(
        net, tmp_path / "a", window_steps=16, entry_steps=64, overhead=0.999, below="positions", below_every=8
    ) as recorder:
        for _ in range(80):
            optimizer.zero_grad()
            net(torch.ones(4, 3)).sum().backward()
            recorder.observe(optimizer)
        assert recorder._budget.every >= 8
    ledger = Ledger.open(tmp_path / "a")
    counted = [entry.details["watched"]["counts"] for entry in ledger.entries]
    assert any(any(count.values()) if isinstance(count, dict) else count for count in counted)
    assert (ledger["weight"].events == 80).all()


@pytest.mark.usefixtures("measured")
def test_events_beyond_the_budget_are_counted_all_the_same_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ledger = record(tmp_path / "a", 200, 0.005)
    said = [line for line in caplog.messages if "counting events alone takes 1.00% of a step" in line]
    assert len(said) == 1
    assert ledger.entries[-1].sampling.stride == STRIDES[-1]
    np.testing.assert_array_equal(ledger["weight"].events, expected(ledger)["events"])


@pytest.mark.parametrize("window_steps", [1, 32, 600, 20_000, 32_767])
def test_weighted_counts_of_a_window_fit_16_bits(window_steps: int) -> None:
    budget = Budget(1e-9, window_steps)
    assert max(budget._strides) * window_steps <= 32_767


def test_ranks_agree_on_the_widest_stride_and_learn_until_all_have_learned() -> None:
    assert Budget.agreed([(4, 16, True), (16, 20, False), (2, 90, True)]) == (16, 90, False)


@pytest.mark.parametrize("stride", STRIDES)
def test_every_stride_th_step_is_drawn_on_average_and_none_that_a_smaller_stride_leaves_out(
    stride: int,
) -> None:
    steps = 40_000
    count, share = drawn_in(0, steps, stride), 1 / stride
    assert abs(count - steps * share) <= 4 * np.sqrt(steps * share * (1 - share))
    assert not any(drawn(s, stride) and not drawn(s, max(1, stride // 2)) for s in range(2000))


def test_what_is_drawn_never_changes() -> None:
    assert [step for step in range(40) if drawn(step, 4)] == [1, 3, 7, 18, 19, 23, 26, 27, 32]


@pytest.mark.parametrize("overhead", [0.0, 1.0, -0.1, float("nan"), "1%"])
def test_what_is_no_share_of_a_step_is_refused_before_anything_is_made(
    overhead: float, tmp_path: Path
) -> None:
    with pytest.raises(InvalidValueError, match="overhead"):
        Recorder(Net(), tmp_path / "a", overhead=overhead)
    assert not (tmp_path / "a").exists()

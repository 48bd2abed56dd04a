"""compensate_ refits exactly the kept weights and biases, to what least squares on the activations says."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.errors import (
    EmptyLedgerError,
    InvalidValueError,
    MismatchError,
    StateError,
    UnknownNameError,
)
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.trimmed import trimmed

TINY = 1e-10
Masks = dict[str, NDArray[np.bool_]]


class Conv1D(nn.Module):
    """As transformers' own: the weight lies (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(9, 14), nn.ReLU(), nn.Dropout(0.5), nn.Linear(14, 11, bias=False), nn.Tanh(), Conv1D(5, 11)
    ).to(dtype)


def masks_of(model: nn.Module, seed: int = 0) -> Masks:
    """Of every weight a half, in row groups of 4 for the first, single weights for the others."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            shape = tuple(parameter.shape)
            group = 4 if name == "0.weight" else 1
            sets = rng.random((-(-shape[0] // group), shape[1])) < 0.5
            masks[name] = np.repeat(sets, group, axis=0)[: shape[0]]
    return masks


def batches(
    count: int = 3, size: int = 40, seed: int = 1, shift: float = 0.3, dtype: torch.dtype = torch.float32
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (torch.randn(size, 9, generator=generator) + shift).to(dtype)


def inputs_of(model: nn.Module, name: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return seen[0]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["0", "3", "5"])
def test_each_layer_becomes_what_lstsq_finds_on_its_inputs(name: str) -> None:
    dense = mlp(torch.float64)
    masks = masks_of(dense)
    model = gt.compensate_(copy.deepcopy(dense), masks, batches(dtype=torch.float64), damping=TINY)
    x = inputs_of(dense, name, torch.cat(list(batches(dtype=torch.float64))))
    flip = name == "5"
    old, new = (one.get_parameter(f"{name}.weight").detach() for one in (dense, model))
    old, new, kept = (
        value.T if flip else value for value in (old, new, torch.from_numpy(masks[f"{name}.weight"]))
    )
    biased = name != "3"
    for row in range(len(old)):
        columns = x[:, kept[row]]
        columns = torch.cat([columns, torch.ones(len(x), 1, dtype=x.dtype)], 1) if biased else columns
        best = torch.linalg.lstsq(columns, (x @ old[row])[:, None]).solution[:, 0]
        torch.testing.assert_close(new[row, kept[row]], best[: int(kept[row].sum())], rtol=1e-6, atol=1e-6)
        if biased:
            moved = model.get_parameter(f"{name}.bias")[row] - dense.get_parameter(f"{name}.bias")[row]
            torch.testing.assert_close(moved.detach(), best[-1], rtol=1e-6, atol=1e-6)
        assert not new[row, ~kept[row]].any()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
def test_weights_of_every_dtype_are_refitted_in_float64(dtype: torch.dtype, tolerance: float) -> None:
    dense = mlp(dtype)
    masks = masks_of(dense)
    moments = gt.input_moments(dense, batches(dtype=dtype))
    exact = gt.compensate_(copy.deepcopy(dense).double(), masks, moments)
    model = gt.compensate_(copy.deepcopy(dense), masks, moments)
    for name, value in model.state_dict().items():
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), exact.state_dict()[name], rtol=tolerance, atol=tolerance)


def test_the_report_says_beforehand_what_the_error_will_be() -> None:
    dense = mlp(torch.float64)
    masks = masks_of(dense)
    before = state_of(dense)
    found = gt.compensation(dense, masks, batches(dtype=torch.float64))
    assert_untouched(dense, before)
    assert list(found) == ["0", "3", "5"]
    masked, compensated = gt.apply_mask_(copy.deepcopy(dense), masks), found.apply_(copy.deepcopy(dense))
    x = torch.cat(list(batches())).double()
    outputs = [model.get_submodule("0")(x).detach() for model in (dense, masked, compensated)]
    variance = outputs[0].var(0, unbiased=False).sum()
    errors = [float((one - outputs[0]).square().mean(0).sum() / variance) for one in outputs[1:]]
    assert (found["0"].before, found["0"].after) == pytest.approx(errors, rel=1e-9)
    assert found["0"].removed == pytest.approx(1 - errors[1] / errors[0])
    assert 0 < found["0"].removed < 1
    assert found["0"].positions == len(x)
    assert "3 batches" in repr(found)


def test_batches_are_seen_in_eval_mode_and_the_model_stays_in_its_own() -> None:
    dense = mlp()
    dense.train()
    masks = masks_of(dense)
    torch.manual_seed(5)
    once = gt.compensate_(copy.deepcopy(dense), masks, batches())
    again = gt.compensate_(copy.deepcopy(dense).eval(), masks, batches())
    assert once.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in once.state_dict().items())


def test_moments_once_taken_serve_several_masks() -> None:
    dense = mlp()
    moments = gt.input_moments(dense, batches())
    assert "3 batches" in repr(moments)
    for seed in range(2):
        masks = masks_of(dense, seed)
        reused = gt.compensate_(copy.deepcopy(dense), masks, moments)
        afresh = gt.compensate_(copy.deepcopy(dense), masks, batches())
        assert all(
            torch.equal(value, afresh.state_dict()[name]) for name, value in reused.state_dict().items()
        )


def test_what_is_no_linear_layer_is_zeroed_and_named() -> None:
    torch.manual_seed(0)
    embedding, tied = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
    tied.weight = embedding.weight
    last = nn.Linear(7, 3)
    model = nn.Sequential(embedding, tied, last)
    masks = {
        name: np.random.default_rng(0).random(tuple(p.shape)) < 0.5 for name, p in model.named_parameters()
    }
    tokens = torch.randint(7, (30,))
    found = gt.compensation(model, masks, [tokens])
    assert list(found) == ["2"]
    assert found.left_out == {
        "0.weight": "it shares '0.weight'",
        "2.bias": "it is no weight of a linear layer",
    }
    before = embedding.weight.detach().clone()
    found.apply_(model)
    assert torch.equal(embedding.weight, before * torch.from_numpy(masks["0.weight"]))
    assert not last.bias[torch.from_numpy(~masks["2.bias"])].any()


def test_a_layer_that_no_batch_reaches_is_left_out() -> None:
    model = mlp()
    model.add_module("unused", nn.Linear(4, 4))
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)  # type: ignore[method-assign]
    masks = masks_of(model)
    found = gt.compensation(model, masks, batches())
    assert found.left_out == {"unused.weight": "no input of it in 3 batches"}


def planned(masks: Masks, dense: tuple[str, ...] = ()) -> Plan:
    layers = {}
    for parameter, mask in masks.items():
        name = parameter.removesuffix(".weight")
        decision = ("dense", ()) if name in dense else ("trimmed", trimmed(mask))
        layers[name] = LayerPlan(*decision, mask, 1.0, 1.0, None, "")
    return Plan(layers)


@pytest.mark.parametrize("masked", [False, True])
def test_a_plan_converts_the_compensated_model_exactly(masked: bool) -> None:
    dense = nn.Sequential(*list(mlp())[:5])
    plan = planned(masks_of(dense), dense=("3",))
    compensated = gt.compensate_(copy.deepcopy(dense), plan, batches(), masked=masked)
    assert torch.equal(*(one.get_parameter("3.weight") for one in (compensated, dense))) != masked
    assert not torch.equal(*(one.get_parameter("0.bias") for one in (compensated, dense)))
    converted = gt.convert_(copy.deepcopy(compensated), plan, masked=masked)
    gt.verify(compensated, converted, next(batches()))


def test_a_converted_layer_comes_too_late() -> None:
    dense = nn.Sequential(*list(mlp())[:5])
    plan = planned(masks_of(dense))
    with pytest.raises(StateError, match="layer '0' has been converted already"):
        gt.compensate_(gt.convert_(dense, plan), plan, batches())


def test_a_compiled_model_is_compensated_under_its_own_names() -> None:
    dense = mlp()
    masks = masks_of(dense)
    expected = gt.compensate_(copy.deepcopy(dense), masks, batches())
    compiled = torch.compile(dense, backend="eager")
    assert isinstance(compiled, nn.Module)
    gt.compensate_(compiled, masks, batches())
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in dense.state_dict().items())


@pytest.fixture
def run(tmp_path: Path) -> tuple[gt.Ledger, nn.Module, list[Tensor]]:
    """(ledger of a training with Gram matrices in each of 4 entries, the trained model, its last inputs)."""
    model = nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 4))
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    given = []
    with gt.Recorder(
        model,
        tmp_path / "run.ledger.zarr",
        window_steps=2,
        entry_steps=4,
        below=("inputs", "gram"),
        below_every=1,
    ) as recorder:
        # 4 steps of 128 inputs are 512 positions, enough for 12 inputs; of another kind than those before.
        for x in [*batches(12, 128, shift=-2.0), *batches(4, 128, seed=2)]:
            given.append(x)
            model(x).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    return gt.Ledger.open(tmp_path / "run.ledger.zarr"), model.eval(), given


def test_a_ledger_says_what_its_last_entries_saw(run: Any) -> None:
    ledger, model, given = run
    masks = masks_of(model)
    found = gt.compensation(model, masks, ledger)
    assert found.source == "the ledger's steps [12, 16)"
    assert found["0"].positions == 512
    by_batches = gt.compensation(model, masks, given[12:])
    # The first layer's inputs are the same; the second's moved with the weights.
    torch.testing.assert_close(found["0"].weight, by_batches["0"].weight, rtol=1e-4, atol=1e-5)
    assert found["2"].after == pytest.approx(by_batches["2"].after, rel=0.1)


def test_more_entries_are_taken_where_the_last_holds_too_little(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(9, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gt.Recorder(
        model,
        tmp_path / "run.ledger.zarr",
        window_steps=2,
        entry_steps=4,
        below=("inputs", "gram"),
        below_every=1,
        merge=False,
    ) as recorder:
        for x in batches(16, 32):
            model(x).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    ledger = gt.Ledger.open(tmp_path / "run.ledger.zarr")
    # 9 inputs ask for 288 positions, 4 steps have 128.
    assert gt.compensation(model, masks_of(model), ledger).source == "the ledger's steps [4, 16)"
    part = ledger.between(8)
    assert gt.compensation(model, masks_of(model), part).source == "the ledger's steps [8, 16)"


def test_stale_moments_are_told_by_one_batch(run: Any) -> None:
    ledger, model, given = run
    masks = masks_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gt.compensation(model, masks, ledger, check=given[-1])
    assert found["0"].checked is not None
    assert 1 - found["0"].checked[1] / found["0"].checked[0] == pytest.approx(found["0"].removed, abs=0.1)
    stale = ledger.between(end=12)
    with pytest.warns(
        UserWarning,
        match=r"steps \[8, 12\) and the batch disagree on 2 of 2 layers: in .* on the batch, not \d+%",
    ):
        gt.compensation(model, masks, stale, check=torch.randn(200, 9) * torch.linspace(9, 0, 9).exp())


def test_a_ledger_without_gram_matrices_names_the_remedy(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(9, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gt.Recorder(model, tmp_path / "run.ledger.zarr", below="inputs", below_every=1) as recorder:
        model(next(batches())).square().mean().backward()
        recorder.observe(optimizer)
        optimizer.step()
    before = state_of(model)
    with pytest.raises(
        UnknownNameError, match=r"'input_gram'.*Pass batches instead.*below=\(\"inputs\", \"gram\"\)"
    ):
        gt.compensate_(model, masks_of(model), gt.Ledger.open(tmp_path / "run.ledger.zarr"))
    assert_untouched(model, before)


def test_a_ledger_without_a_watched_step_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(9, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    path = tmp_path / "run.ledger.zarr"
    with gt.Recorder(model, path, below=("inputs", "gram"), below_every=2**20) as recorder:
        model(next(batches())).square().mean().backward()
        recorder.observe(optimizer)
        optimizer.step()
    with pytest.raises(EmptyLedgerError, match="saw no input of any layer in a watched step"):
        gt.compensate_(model, masks_of(model), gt.Ledger.open(path))


def test_a_ledger_of_another_model_is_refused(run: Any) -> None:
    other = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4))
    before = state_of(other)
    with pytest.raises(MismatchError, match=r"'0\.weight' has another shape than in the ledger"):
        gt.compensate_(other, masks_of(other), run[0])
    assert_untouched(other, before)


def test_weights_of_another_run_are_refused(tmp_path: Path) -> None:
    def fresh(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(20, 16))

    model = fresh(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    path = tmp_path / "run.ledger.zarr"
    with gt.Recorder(model, path, below=("inputs", "gram"), below_every=1) as recorder:
        for _ in range(4):
            x = torch.randn(32, 20)
            x[:, 10:] = 0  # what no gradient ever moves tells the runs apart
            model(x).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    ledger, other = gt.Ledger.open(path), fresh(1)
    assert len(gt.compensation(model, masks_of(model), ledger)) == 1
    before = state_of(other)
    with pytest.raises(MismatchError, match="not those of the run that the ledger recorded"):
        gt.compensate_(other, masks_of(other), ledger)
    assert_untouched(other, before)


def broken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.get_parameter("5.weight")[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "inputs", "error", "match"),
    [
        (mlp(), [], InvalidValueError, "batches: expected at least one batch, got none"),
        (
            mlp(),
            torch.ones(3, 9),
            InvalidValueError,
            r"batches: .*got Tensor. Pass \[batch\] for a single one",
        ),
        (mlp(), 7, InvalidValueError, "batches: expected an iterable of batches, got int"),
        (mlp(), ["x"], InvalidValueError, "batch: expected a tensor, a tuple of arguments or a dict"),
        (broken(mlp()), list(batches()), InvalidValueError, "weight of layer '5': expected finite numbers"),
        (
            mlp(),
            [torch.full((3, 9), torch.inf)],
            InvalidValueError,
            "layer '0': input moments: expected finite",
        ),
        (mlp(), [torch.ones(0, 9)], InvalidValueError, "batches: expected an input of a linear layer"),
    ],
)
def test_bad_input_changes_nothing(model: nn.Module, inputs: Any, error: type[Exception], match: str) -> None:
    before = state_of(model)
    with pytest.raises(error, match=match):
        gt.compensate_(model, masks_of(model), inputs)
    assert all(torch.equal(v, before[k]) or "5.w" in k for k, v in model.state_dict().items())


def test_moments_of_another_model_are_refused() -> None:
    moments = gt.input_moments(nn.Sequential(nn.Linear(8, 2)), [torch.randn(30, 8)])
    with pytest.raises(MismatchError, match="input moments of layer '0': expected 9 inputs, got 8"):
        gt.compensate_(mlp(), masks_of(mlp()), moments)


def test_a_compensation_is_not_put_into_other_weights() -> None:
    dense = mlp()
    found = gt.compensation(dense, masks_of(dense), batches())
    other = mlp()
    with torch.no_grad():
        other.get_parameter("5.bias")[0] += 1
    before = state_of(other)
    with pytest.raises(
        MismatchError, match=r"made for other weights: layer '5'.*got other weights. Make it again"
    ):
        found.apply_(other)
    assert_untouched(other, before)
    with pytest.raises(UnknownNameError, match="no layer '1' in this compensation: expected 0, 3, 5"):
        found["1"]

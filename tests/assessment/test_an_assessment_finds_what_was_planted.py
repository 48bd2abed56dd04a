from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import gradtrace as gt
from gradtrace.assessment.assessment import LayerAssessment
from gradtrace.assessment.heads import Heads, heads_of
from gradtrace.cli import app
from gradtrace.errors import InvalidValueError, MismatchError, UnknownNameError, UnsupportedError
from gradtrace.report.assessment_words import assessment_lines, next_lines
from gradtrace.structure.cost import CostTable

STEPS, ENTRY = 24, 8
DEAD_INPUTS, DEAD_NEURON, SILENT = (2, 11), 4, 5


class Planted(nn.Module):
    """13 inputs, two never set; 9 neurons, one dead, one dead from step 16 on; two layers in exact blocks.

    `frozen` moves by a millionth of the others' rate; tokens 6 and 7 of 8 are never looked up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 3)
        self.first = nn.Linear(13, 9)
        self.blocks = nn.Linear(10, 6, bias=False)
        self.frozen = nn.Linear(9, 7)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x)) * gate
        halves = [x[:, :5] @ self.blocks.weight[:3, :5].T, x[:, 5:10] @ self.blocks.weight[3:, 5:].T]
        return torch.cat([self.frozen(hidden), *halves, self.embed(tokens).flatten(1)], 1)


def inputs(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(32, 13, generator=generator) + 0.1
    x[:, list(DEAD_INPUTS)] = 0
    gate = torch.ones(9)
    gate[DEAD_NEURON] = 0
    gate[SILENT] = float(step < STEPS - ENTRY)
    return x, torch.randint(0, 6, (32, 2), generator=generator), gate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Planted]:
    path = tmp_path_factory.mktemp("planted")
    torch.manual_seed(0)
    net = Planted()
    with torch.no_grad():
        net.first.weight.abs_()  # and inputs above zero: no neuron but the planted ones is ever off
    still = list(net.frozen.parameters())
    rest: list[nn.Parameter] = [one for one in net.parameters() if all(one is not other for other in still)]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": still, "lr": 1e-8}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    with gt.Recorder(net, path / "run.zarr", window_steps=4, entry_steps=ENTRY, merge=False) as recorder:
        for step in range(STEPS):
            net(*inputs(step)).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    torch.save(net.state_dict(), path / "weights.pt")
    return path, net


@pytest.fixture(scope="module")
def found(run: tuple[Path, Planted]) -> gt.Assessment:
    return gt.assess(gt.Ledger.open(run[0] / "run.zarr"), run[1])


def test_dead_inputs_and_neurons_are_those_planted(found: gt.Assessment) -> None:
    first = found["first.weight"]
    assert (first.inputs, first.outputs) == (13, 9)
    assert first.dead_inputs == DEAD_INPUTS
    assert first.dead_outputs == (DEAD_NEURON,)
    assert first.silent_outputs == (SILENT,)
    assert first.never_supported == 2 * 9 + 11
    assert found["frozen.weight"].dead_inputs == (DEAD_NEURON,)


def test_counts_are_those_of_the_ledgers_events(run: tuple[Path, Planted], found: gt.Assessment) -> None:
    ledger = gt.Ledger.open(run[0] / "run.zarr")
    for name, layer in found.layers.items():
        assert layer.never_supported == int((ledger[name].events == 0).sum()), name
        assert layer.dependencies == ledger[name].events.size, name
    never = sum(int((ledger[name].events == 0).sum()) for name in found.layers)
    assert found.never_supported == never / sum(ledger[name].events.size for name in found.layers)


def test_what_is_confirmed_is_what_confirm_confirms(run: tuple[Path, Planted], found: gt.Assessment) -> None:
    ledger = gt.Ledger.open(run[0] / "run.zarr")
    mask = gt.confirm(gt.score(ledger, run[1], by="drift"), "local", found.q)
    assert {name: one.confirmed for name, one in found.layers.items()} == {
        name: int(mask[name].sum()) for name in found.layers
    }


def test_exact_blocks_are_found(found: gt.Assessment) -> None:
    blocks = found["blocks.weight"]
    # Input 2 is dead: 4 inputs by 3 outputs, and 5 by 3.
    assert (blocks.blocks, blocks.runs) == (2, (4 * 3 + 5 * 3) / 60)
    assert blocks.decomposes
    assert (found["frozen.weight"].blocks, found["frozen.weight"].runs) == (1, 8 / 9)


def test_the_way_of_a_layer_is_that_of_float64_numpy(run: tuple[Path, Planted], found: gt.Assessment) -> None:
    ledger = gt.Ledger.open(run[0] / "run.zarr")
    for name, rate in (("first.weight", 1e-3), ("frozen.weight", 1e-8)):
        opening = ledger[name].opening.astype(np.float64)
        final = run[1].get_parameter(name).detach().double().numpy()
        way = np.linalg.norm(final - opening * (1 - rate * 0.1) ** STEPS) / np.linalg.norm(opening)
        assert found[name].moved == pytest.approx(way, rel=1e-6)
    assert [name for name, one in found.layers.items() if one.hardly_moved] == ["frozen.weight"]


def test_unused_tokens_are_counted(found: gt.Assessment) -> None:
    (tokens,) = found.tokens
    assert (tokens.name, tokens.rows, tokens.never, tokens.refused) == ("embed.weight", 8, 2, "")


def test_time_goes_by_weights_and_by_the_cost_model_where_there_is_one(
    run: tuple[Path, Planted], found: gt.Assessment
) -> None:
    sizes = {"first.weight": 117, "blocks.weight": 60, "frozen.weight": 63}
    assert {name: one.time for name, one in found.layers.items()} == {k: v / 240 for k, v in sizes.items()}
    table = CostTable(8, (1, 64), (1, 64), ((1.0, 1.0), (64.0, 64.0)))  # by inputs alone
    timed = gt.assess(gt.Ledger.open(run[0] / "run.zarr"), cost=table)
    assert timed.timed_by == "cost model"
    assert timed["first.weight"].time == pytest.approx(13 / 32)
    assert timed["blocks.weight"].time == pytest.approx(10 / 32)


def test_without_weights_nothing_is_said_of_movement(run: tuple[Path, Planted]) -> None:
    found = gt.assess(gt.Ledger.open(run[0] / "run.zarr"))
    assert all(one.moved is None for one in found.layers.values())
    assert any("--weights" in line for line in next_lines(found, weights=False))
    assert not any("moved" in line for line in assessment_lines(found))


@pytest.mark.parametrize(
    "said",
    [
        "4 dead inputs never carried anything, being always zero: first.weight (2), blocks.weight (1)",
        "1 neuron fell silent: no gradient in the last entry: first.weight (1)",
        "1 layer of 3 hardly moved",
        "embed.weight: 2 of 8 rows were never used",
        "if time goes by weights",
        "would run less without losing anything that was supported: first.weight, blocks.weight",
    ],
)
def test_the_words_say_what_was_found(found: gt.Assessment, said: str) -> None:
    lines = assessment_lines(found)
    assert any(said in line for line in lines), lines


class Attention(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 2
        if fused:
            self.qkv = nn.Linear(6, 18)
        else:
            self.q_proj, self.v_proj = nn.Linear(6, 6), nn.Linear(6, 4)


def test_heads_are_named_by_the_usual_names() -> None:
    model = nn.ModuleDict({"a": Attention(fused=True), "b": Attention(fused=False)})
    model["c"] = nn.MultiheadAttention(8, 4)
    assert heads_of(model) == {
        "a.qkv.weight": Heads(2, True),
        "b.v_proj.weight": Heads(2, False),
        "c.in_proj_weight": Heads(2, True),
    }
    assert heads_of({"a": 1}) == {}


@pytest.mark.parametrize("fused", [True, False])
def test_a_head_is_dead_when_its_values_are(fused: bool) -> None:
    live = np.ones(18 if fused else 6, np.bool_)
    live[-4:-2] = False
    live[0] = False
    assert Heads(2, fused).dead(live) == (3, (1,))
    assert Heads(4, False).dead(live[-6:]) == (0, ())


def test_dead_heads_are_told_of_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(8, 4, batch_first=True)
    with torch.no_grad():
        net.out_proj.weight[:, 2:4] = 0
    optimizer = torch.optim.SGD([net.in_proj_weight], lr=0.1)
    with gt.Recorder(net, tmp_path / "run.zarr", include="in_proj_weight", window_steps=2) as recorder:
        for _ in range(4):
            x = torch.randn(2, 5, 8)
            net(x, x, x)[0].square().mean().backward()
            recorder.observe(optimizer)
            optimizer.zero_grad()
    found = gt.assess(gt.Ledger.open(tmp_path / "run.zarr"), net)
    assert (found["in_proj_weight"].heads, found["in_proj_weight"].dead_heads) == (4, (1,))
    assert any("1 dead attention head" in line for line in assessment_lines(found))


def test_a_channel_of_a_convolution_counts_as_one(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gt.Recorder(net, tmp_path / "run.zarr", window_steps=2) as recorder:
        for _ in range(4):
            x = torch.rand(2, 3, 6, 6)
            x[:, 1] = 0
            net[0](x).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.zero_grad()
    layer = gt.assess(gt.Ledger.open(tmp_path / "run.zarr"))["0.weight"]
    assert (layer.inputs, layer.outputs, layer.dead_inputs) == (3, 4, (1,))
    assert layer.never_supported == 4 * 9
    assert layer.runs == 2 / 3


def test_json_holds_the_figures_and_the_words(run: tuple[Path, Planted], found: gt.Assessment) -> None:
    told: dict[str, Any] = json.loads(_assessed(run[0], "--json").stdout)
    assert told["never_supported"] == found.never_supported
    assert told["layers"] == json.loads(json.dumps(found.to_json()))["layers"]
    assert told["words"] == list(assessment_lines(found))
    assert told["next"] == list(next_lines(found, weights=True))


def test_the_command_says_it_in_words(run: tuple[Path, Planted], found: gt.Assessment) -> None:
    printed = _assessed(run[0]).stdout
    for line in (*assessment_lines(found), "What to do next:", *next_lines(found, weights=True)):
        assert line in printed


def _assessed(folder: Path, *more: str) -> Any:
    line = ["assess", str(folder / "run.zarr"), "--weights", str(folder / "weights.pt"), *more]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    return result


def test_errors_say_what_to_do(run: tuple[Path, Planted], tmp_path: Path) -> None:
    ledger = gt.Ledger.open(run[0] / "run.zarr")
    with pytest.raises(InvalidValueError, match=r"Ledger\.open"):
        gt.assess(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="q"):
        gt.assess(ledger, q=0.0)
    with pytest.raises(MismatchError):
        gt.assess(ledger, {"other.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(UnknownNameError, match=r"expected first\.weight"):
        gt.assess(ledger)["fist.weight"]
    result = CliRunner().invoke(app, ["assess", str(run[0] / "run.zarr"), "--model", "a:b"])
    assert result.exit_code == 1
    assert "--weights beside it" in result.stderr
    only_bias = nn.Linear(3, 2)
    with gt.Recorder(only_bias, tmp_path / "bias.zarr", include="bias") as recorder:
        optimizer = torch.optim.SGD([only_bias.bias], lr=0.1)
        only_bias(torch.ones(1, 3)).sum().backward()
        recorder.observe(optimizer)
    with pytest.raises(UnsupportedError, match="Record linear layers"):
        gt.assess(gt.Ledger.open(tmp_path / "bias.zarr"))


def test_a_layer_says_whether_it_decomposes() -> None:
    layer = LayerAssessment("a", (2, 3), 0, None, 2, 3, (), (), (), 0, (), None, 1, 0.95, 1.0)
    assert (layer.dependencies, layer.hardly_moved, layer.decomposes) == (6, False, False)

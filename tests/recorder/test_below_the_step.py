"""Whole models watched for a step: what is found equals autograd, by position and by sample."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.recorder.below.step_evidence import StepEvidence
from gradtrace.recorder.below.wanted import Wanted, Word
from gradtrace.recorder.below.watch import Watch
from gradtrace.recorder.parameters import Selection, candidates

ALL: tuple[Word, ...] = ("positions", "samples", "inputs", "gram")


def watching(model: nn.Module, *words: Word) -> Watch:
    return Watch(model, candidates(model, Selection()), Wanted.of(words or ALL))


def shaped(model: nn.Module, evidence: StepEvidence | None, name: str) -> dict[str, torch.Tensor]:
    """One accumulator by parameter name, in its shape, as contributions to the recorded gradient."""
    assert evidence is not None
    evidence.wait()
    factor = float(evidence.factor) ** 2 if name.endswith("sumsq") else 1.0
    found = {}
    for part in evidence.parameters:
        shape = model.get_parameter(part.name).shape
        found[part.name] = factor * evidence.arrays[name][part.offset : part.offset + part.size].view(shape)
    return found


def per_sample(
    model: nn.Module, loss: Callable[[torch.Tensor], Any], x: torch.Tensor, share: float
) -> dict[str, torch.Tensor]:
    """Gradients of the loss of each sample alone, times `share`, stacked."""
    rows = []
    for sample in range(len(x)):
        model.zero_grad()
        (loss(model(x[sample : sample + 1])) * share).backward()
        rows.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in model.named_parameters()
            }
        )
    model.zero_grad()
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Tokens(nn.Module):
    """A small language model in float64; its parts can be used in all the ways that real ones use them."""

    def __init__(self, *, tied: bool = False, twice: bool = False, checkpointing: str = "") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(11, 6)
        self.block = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 6))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.twice, self.checkpointing = twice, checkpointing
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(x)
        for _ in range(2 if self.twice else 1):
            if self.checkpointing:
                hidden = hidden + checkpoint(
                    self.block, hidden, use_reentrant=self.checkpointing == "reentrant"
                )
            else:
                hidden = hidden + self.block(hidden)
        out: torch.Tensor = self.head(self.norm(hidden))
        return out


def tokens(samples: int = 4, length: int = 5) -> torch.Tensor:
    return torch.randint(0, 9, (samples, length), generator=torch.Generator().manual_seed(1))


def mean_loss(out: torch.Tensor) -> Any:
    return functional.cross_entropy(out.flatten(0, 1), torch.arange(out[..., 0].numel()) % 11)


def sum_loss(out: torch.Tensor) -> Any:
    return out.square().sum()


def check_samples(
    model: nn.Module,
    watch: Watch,
    loss: Callable[[torch.Tensor], Any],
    x: torch.Tensor,
    share: float,
) -> StepEvidence:
    """One watched step beside the loss of each sample alone; returns the evidence."""
    each = per_sample(model, loss, x, share)
    watch.begin()
    loss(model(x)).backward()
    evidence = watch.end(model.parameters())
    assert evidence is not None
    assert watch.fallen == {}
    sumsq, support = (shaped(model, evidence, f"sample_{what}") for what in ("sumsq", "support"))
    assert set(sumsq) == set(each)
    for name, gradient in each.items():
        torch.testing.assert_close(gradient.sum(0), model.get_parameter(name).grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sumsq[name], gradient.square().sum(0), rtol=1e-6, atol=1e-14)
        # A sum over positions that cancels need not be exactly zero in both.
        assert ((support[name] > 0) >= (gradient.abs() > 1e-12).any(0)).all()
    return evidence


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"tied": True},
        {"twice": True},
        {"tied": True, "twice": True},
        {"checkpointing": "reentrant"},
        {"checkpointing": "not reentrant"},
        {"checkpointing": "reentrant", "twice": True},
        {"checkpointing": "not reentrant", "twice": True, "tied": True},
    ],
    ids=lambda how: ", ".join(f"{key}={value}" for key, value in how.items()) or "plain",
)
def test_samples_equal_the_gradient_of_each_sample_alone(how: dict[str, Any], reduction: str) -> None:
    model, x = Tokens(**how), tokens()
    # One sample alone has the mean over its own positions, of which a quarter is its share of the step.
    targets = torch.arange(5) % 11

    def mean(out: torch.Tensor) -> Any:
        return functional.cross_entropy(out.flatten(0, 1), targets.repeat(len(out)))

    loss, share = (mean, 0.25) if reduction == "mean" else (sum_loss, 1.0)
    evidence = check_samples(model, watching(model), loss, x, share)
    assert {part.samples for part in evidence.parameters} == {4}


@pytest.mark.parametrize("how", [{}, {"tied": True}, {"twice": True}, {"checkpointing": "not reentrant"}])
def test_positions_equal_a_loop_over_the_uses(how: dict[str, Any]) -> None:
    """With one token in each sample, a sample is a position of each use, and clones tell uses apart."""
    model, x = Tokens(**how), tokens(6, 1)
    watch = watching(model, "positions")
    watch.begin()
    mean_loss(model(x)).backward()
    evidence = watch.end(model.parameters())
    found, support = (shaped(model, evidence, f"position_{what}") for what in ("sumsq", "support"))
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    marks = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    uses = Uses(model)
    for sample in range(6):
        out = uses(x[sample : sample + 1])
        target = torch.tensor([sample % 11])
        alone: Any = functional.cross_entropy(out.flatten(0, 1), target) / 6
        alone.backward()
        for name, one in uses.gradients():
            expected[name] += one.square()
            marks[name] += one != 0
    for name, squares in expected.items():
        torch.testing.assert_close(found[name], squares, rtol=1e-6, atol=1e-16)
        assert torch.equal(support[name], marks[name]), name


class Uses:
    """Calls a Tokens model so that each use of a parameter has a leaf of its own."""

    def __init__(self, model: Tokens) -> None:
        self.model = model
        self.leaves: list[tuple[str, torch.Tensor]] = []

    def leaf(self, name: str) -> torch.Tensor:
        copy = self.model.get_parameter(name).detach().clone().requires_grad_()
        canonical = "embed.weight" if self.model.head.weight is self.model.embed.weight else name
        self.leaves.append((canonical if name == "head.weight" else name, copy))
        return copy

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.leaves = []
        hidden = functional.embedding(x, self.leaf("embed.weight"))
        for _ in range(2 if self.model.twice else 1):
            inner = functional.linear(hidden, self.leaf("block.0.weight"), self.leaf("block.0.bias")).relu()
            hidden = hidden + functional.linear(inner, self.leaf("block.2.weight"), self.leaf("block.2.bias"))
        normal = functional.layer_norm(hidden, (6,), self.leaf("norm.weight"), self.leaf("norm.bias"))
        return functional.linear(normal, self.leaf("head.weight"))

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, leaf in self.leaves:
            assert leaf.grad is not None
            yield name, leaf.grad


def test_gradient_accumulation_and_evaluation_in_between_change_nothing() -> None:
    model = Tokens(tied=True)
    x = tokens(6)
    at_once = check_samples(model, watching(model), sum_loss, x, 1.0)
    model.zero_grad()
    watch = watching(model)
    watch.begin()
    for part in (x[:1], x[1:4], x[4:]):
        model.eval()
        with torch.no_grad():
            model(x)
        model.train()
        sum_loss(model(part)).backward()
    in_parts = watch.end(model.parameters())
    assert in_parts is not None
    for name in at_once.arrays:
        torch.testing.assert_close(in_parts.arrays[name], at_once.arrays[name], rtol=1e-9, atol=1e-12)
    assert in_parts.parameters == at_once.parameters
    assert in_parts.inputs == at_once.inputs


def test_two_forward_passes_before_one_backward_are_joined_by_sample() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    left, right = torch.randn(2, 5, 3, dtype=torch.float64)

    def loss(ends: torch.Tensor) -> Any:
        return (model(ends[:, 0]) - model(ends[:, 1])).square().sum()

    ends = torch.stack([left, right], 1)
    each = []
    for sample in range(5):
        model.zero_grad()
        loss(ends[sample : sample + 1]).backward()
        grad = model.get_parameter("0.weight").grad
        assert grad is not None
        each.append(grad.clone())
    model.zero_grad()
    watch = watching(model)
    watch.begin()
    loss(ends).backward()
    evidence = watch.end(model.parameters())
    torch.testing.assert_close(
        shaped(model, evidence, "sample_sumsq")["0.weight"], torch.stack(each).square().sum(0)
    )
    assert evidence is not None
    assert {(part.positions, part.samples) for part in evidence.parameters} == {(10, 5)}


def test_the_loss_scale_and_the_ranks_are_divided_out() -> None:
    model, x = Tokens(), tokens()
    plain = check_samples(model, watching(model), sum_loss, x, 1.0)
    model.zero_grad()
    watch = watching(model)
    watch.begin()
    (sum_loss(model(x)) * 1024.0).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad /= 2  # averaged over two ranks, the other of which had no loss
    evidence = watch.end(model.parameters(), loss_scale=torch.tensor(1024.0), ranks=2)
    assert watch.fallen == {}
    expected = shaped(model, plain, "sample_sumsq")
    for name, squares in shaped(model, evidence, "sample_sumsq").items():
        torch.testing.assert_close(squares, expected[name] / 4, rtol=1e-9, atol=1e-14)


def test_gradients_that_the_scaler_has_unscaled_pass_the_check() -> None:
    model, x = Tokens(), tokens()
    watch = watching(model)
    watch.begin()
    (sum_loss(model(x)) * 1024.0).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad /= 1024.0
    watch.end(model.parameters(), loss_scale=torch.tensor(1024.0), grads_are_unscaled=True)
    assert watch.fallen == {}


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_agrees_with_float64_within_its_precision(autocast: bool) -> None:
    exact = Tokens(tied=True)
    x = tokens(8, 16)
    loss = sum_loss
    expected = shaped(exact, check_samples(exact, watching(exact), loss, x, 1.0), "position_sumsq")
    model = Tokens(tied=True).to(torch.float32 if autocast else torch.bfloat16)
    watch = watching(model)
    watch.begin()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(x)
    loss(out.float()).backward()
    evidence = watch.end(model.parameters())
    assert watch.fallen == {}
    for name, squares in shaped(model, evidence, "position_sumsq").items():
        distance = (squares.double() - expected[name]).norm() / expected[name].norm()
        assert distance < 0.1, name


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_steps_that_overlap_leave_torch_compile_as_it_was(first_ends_first: bool) -> None:
    # What other tests left within a step is theirs.
    gc.collect()
    torch._dynamo.reset()
    compiled_calls = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        compiled_calls.append(1)
        return graph.forward

    fast = torch.compile(lambda x: x + 1, backend=backend)
    watches = [watching(Tokens()), watching(Tokens())]
    for watch in watches:
        watch.begin()
    del watch
    fast(torch.ones(2))
    del watches[0 if first_ends_first else 1]
    gc.collect()
    fast(torch.ones(2))
    assert not compiled_calls
    del watches[0]
    gc.collect()
    fast(torch.ones(2))
    assert compiled_calls
    torch._dynamo.reset()


def test_a_compiled_model_runs_sampled_steps_eagerly_and_the_others_compiled() -> None:
    # What other tests compiled, or left within a step, is theirs.
    gc.collect()
    torch._dynamo.reset()
    compiled_calls = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            compiled_calls.append(1)
            return graph.forward(*args)

        return run

    model, x = Tokens(), tokens()
    fast: Any = torch.compile(model, backend=backend)
    expected = check_samples(model, watching(model), sum_loss, x, 1.0)
    model.zero_grad()
    watch = watching(fast)
    sum_loss(fast(x)).backward()
    before = len(compiled_calls)
    assert before
    model.zero_grad()
    watch.begin()
    sum_loss(fast(x)).backward()
    evidence = watch.end(model.parameters())
    assert len(compiled_calls) == before
    assert evidence is not None
    torch.testing.assert_close(dict(evidence.arrays), dict(expected.arrays))
    sum_loss(fast(x)).backward()
    assert len(compiled_calls) > before
    torch._dynamo.reset()


class Odd(nn.Module):
    """Uses that hooks miss, or mistake, beside one that they see."""

    def __init__(self, odd: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.odd = odd
        self.seen = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.seen(x)
        if self.odd == "never called":
            return functional.linear(hidden, self.other.weight, self.other.bias)
        out: torch.Tensor = self.other(hidden)
        if self.odd == "functional as well":
            out = out + functional.linear(x, self.other.weight, self.other.bias)
        return out


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("never called", "no use of it was seen"),
        ("functional as well", "differs from its gradient"),
        ("gradient changed", "differs from its gradient"),
        ("penalty", "differs from its gradient"),
        ("walked twice", "walked backward twice"),
    ],
)
def test_what_hooks_do_not_see_falls_back_with_one_warning_that_names_it(
    odd: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Odd(odd)
    watch = watching(model)
    for _ in range(2):
        model.zero_grad()
        watch.begin()
        loss: Any = model(torch.randn(5, 4)).square().sum()
        if odd == "penalty":
            loss = loss + 0.5 * model.other.weight.sum() + model.other.bias.sum()
        loss.backward(retain_graph=odd == "walked twice")
        if odd == "walked twice":
            loss.backward()
        if odd == "gradient changed":
            for parameter in model.other.parameters():
                assert parameter.grad is not None
                parameter.grad *= 0.5
        evidence = watch.end(model.parameters())
    fallen = {"other.weight", "other.bias"} | (
        {"seen.weight", "seen.bias"} if odd == "walked twice" else set()
    )
    assert set(watch.fallen) == fallen
    assert all(reason in why for why in watch.fallen.values())
    warned = " ".join(record.message for record in caplog.records if record.levelno == logging.WARNING)
    for name in fallen:
        assert warned.count(name) == 1
    if odd != "walked twice":
        assert evidence is not None
        assert {part.name for part in evidence.parameters} == {"seen.weight", "seen.bias"}
        assert {one.info.module for one in evidence.inputs} == {"seen"}


def test_a_module_without_a_formula_and_one_whose_formula_fails_fall_back() -> None:
    class Fanciful(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[..., ::2])

    model = nn.ModuleDict({"rnn": nn.GRU(4, 3), "fanciful": Fanciful(2, 3), "plain": nn.Linear(3, 2)})
    watch = watching(model)
    assert {name.split(".")[0] for name in watch.fallen} == {"rnn"}
    watch.begin()
    model["plain"](model["fanciful"](torch.randn(5, 4))).sum().backward()
    evidence = watch.end(model.parameters())
    assert evidence is not None
    assert {part.name for part in evidence.parameters} >= {"plain.weight", "plain.bias"}
    assert "formula failed" in watch.fallen["fanciful.weight"]


def test_frozen_parameters_and_unused_modules_have_no_evidence() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
    model["a"].weight.requires_grad_(False)
    watch = watching(model)
    watch.begin()
    model["b"](model["a"](torch.randn(4, 3))).sum().backward()
    evidence = watch.end(model.parameters())
    assert evidence is not None
    assert {part.name for part in evidence.parameters} == {"a.bias", "b.weight", "b.bias"}
    assert {one.info.module for one in evidence.inputs} == {"b"}
    assert watch.fallen == {}


def test_only_the_stepping_optimizers_parameters_count() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    watch = watching(model)
    watch.begin()
    model(torch.randn(4, 3)).sum().backward()
    evidence = watch.end(model[1].parameters())
    assert evidence is not None
    assert {part.name for part in evidence.parameters} == {"1.weight", "1.bias"}


def test_optimizers_that_share_a_backward_pass_share_its_evidence() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    watch = watching(model)
    found = []
    for _ in range(3):
        model.zero_grad()
        watch.begin()
        model(torch.randn(4, 3)).sum().backward()
        for part in (model[0], model[1]):
            evidence = watch.end(part.parameters())
            assert evidence is not None
            found.append(sorted(one.name for one in evidence.parameters))
            watch.begin()  # as a recorder does after every step
    assert found == [["0.bias", "0.weight"], ["1.bias", "1.weight"]] * 3
    assert watch.fallen == {}
    watch.cancel()


def test_what_an_optimizer_leaves_is_dropped_by_the_next_forward_pass() -> None:
    """As with two networks that train against each other."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    watch = watching(model)
    watch.begin()
    model(torch.randn(4, 3)).sum().backward()
    assert watch.end(model[1].parameters()) is not None
    assert watch.is_over
    model.zero_grad()
    model[0](torch.randn(7, 3)).sum().backward()
    assert watch.end(model[0].parameters()) is None
    assert watch.fallen == {}
    assert not any(module._forward_hooks for module in model.modules())
    watch.begin()
    model(torch.randn(4, 3)).sum().backward()
    watch.end(model[1].parameters())
    watch.begin()
    model.zero_grad()
    model[0](torch.randn(7, 3)).sum().backward()
    evidence = watch.end(model[0].parameters())
    assert evidence is not None
    assert {(one.name, one.positions) for one in evidence.parameters} == {("0.weight", 7), ("0.bias", 7)}
    assert watch.fallen == {}


def test_a_backward_pass_of_before_is_no_reason_to_fall_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    watch = watching(model)
    model(torch.randn(4, 3)).sum().backward()
    watch.begin()
    assert watch.end(model.parameters()) is None
    assert watch.fallen == {}


def test_the_model_carries_no_hooks_outside_a_watched_step() -> None:
    model = Tokens()
    watch = watching(model)
    watch.begin()
    sum_loss(model(tokens())).backward()
    assert any(module._forward_hooks for module in model.modules())
    watch.end(model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert watch.end(model.parameters()) is None
    watch.begin()
    watch.cancel()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_backward_pass_that_comes_after_the_step_adds_nothing() -> None:
    model = Tokens()
    watch = watching(model)
    watch.begin()
    loss = sum_loss(model(tokens()))
    watch.begin()
    loss.backward()
    assert watch.end(model.parameters()) is None


def test_checkpointing_still_frees_the_inputs_of_the_layers_inside() -> None:
    model = Tokens(checkpointing="not reentrant")
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    def count() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens())
        return sum(kept)

    count()
    plain = count()
    watch = watching(model)
    watch.begin()
    watched = count()
    watch.cancel()
    # Outside of the checkpoint inputs are kept that autograd keeps as well; inside it, none.
    outside = 20 + 20 * 6 + 20 * 6
    assert watched <= plain + outside


def test_samples_are_refused_where_batch_statistics_tie_them() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(UnsupportedError, match=r"BatchNorm1d '1'.*positions"):
        watching(model, "samples")
    assert watching(model, "positions").fallen == {}


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="positions, samples, inputs, gram"):
        Wanted.of(["position"])  # type: ignore[list-item]


class Attentive(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.how = how
        sizes = {"kdim": 3, "vdim": 5} if how == "other sizes" else {}
        if how == "encoder layer":
            self.layer: Any = nn.TransformerEncoderLayer(4, 2, 7, dropout=0.0, batch_first=True)
        else:
            bias = how != "no bias"
            self.layer = nn.MultiheadAttention(4, 2, batch_first=how != "time first", bias=bias, **sizes)
        self.double()

    def forward(self, x: torch.Tensor) -> Any:
        if self.how == "encoder layer":
            return self.layer(x)
        if self.how == "time first":
            return self.layer(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0]
        if self.how == "self-attention":
            return self.layer(x, x, x, need_weights=False)[0]
        if self.how == "other sizes":
            return self.layer(x, x[..., :3], torch.cat([x, x[..., :1]], -1))[0]
        return self.layer(x, x.flip(1), x.flip(1))[0]


@pytest.mark.parametrize(
    "how", ["self-attention", "time first", "key and value", "no bias", "other sizes", "encoder layer"]
)
def test_the_projections_of_attention_equal_the_gradient_of_each_sample_alone(how: str) -> None:
    model = Attentive(how)
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if how == "other sizes":
        x[..., 3] = 1.0
    evidence = check_samples(model, watching(model), sum_loss, x, 1.0)
    name = "layer.self_attn.out_proj" if how == "encoder layer" else "layer.out_proj"
    assert {(part.positions, part.samples) for part in evidence.parameters if name in part.name} == {(15, 3)}
    assert name in {one.info.module for one in evidence.inputs}


def test_a_failing_attention_leaves_nothing_behind() -> None:
    model = Attentive("self-attention")
    watch = watching(model)
    watch.begin()
    with pytest.raises(AssertionError):
        model.layer(torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.randn(3, 4, 3))
    assert torch._C._len_torch_function_stack() == 0
    watch.cancel()

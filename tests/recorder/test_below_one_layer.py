"""What layers contribute below the step, beside autograd over each position and torch.func over samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from gradtrace.errors import UnsupportedError
from gradtrace.recorder.below.contribution import Contribution, InputMoments, add_sample_moments
from gradtrace.recorder.below.kinds import kind_of


class LlamaRMSNorm(nn.Module):
    """As transformers' models define it, each anew."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x.dtype
        wide = x if kept == torch.float64 else x.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + self.variance_epsilon)).to(kept)


# A module, and the shape of its input.
Case = tuple[Callable[[], nn.Module], tuple[int, ...]]
LAST: dict[str, Case] = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear, tokens": (lambda: nn.Linear(5, 3), (4, 7, 5)),
    "linear, four axes": (lambda: nn.Linear(5, 3), (2, 3, 4, 5)),
    "linear, one vector": (lambda: nn.Linear(5, 3), (5,)),
    "linear, no bias, one output": (lambda: nn.Linear(6, 1, bias=False), (3, 2, 6)),
    "Conv1D of GPT-2": (lambda: Conv1D(3, 5), (4, 7, 5)),  # type: ignore[no-untyped-call]
    "layer norm": (lambda: nn.LayerNorm(5), (4, 3, 5)),
    "layer norm, two axes": (lambda: nn.LayerNorm((3, 5)), (4, 2, 3, 5)),
    "rms norm": (lambda: nn.RMSNorm(5), (4, 3, 5)),
    "rms norm, eps": (lambda: nn.RMSNorm(5, eps=0.1), (4, 5)),
    "rms norm of Llama": (lambda: LlamaRMSNorm(5), (4, 3, 5)),
}
CHANNELS: dict[str, Case] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (3, 4, 9)),
    "conv1d, stride, padding, dilation, groups": (
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        (3, 4, 11),
    ),
    "conv1d, one sample without its axis": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 5)),
    "conv2d, ragged": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        (3, 4, 7, 6),
    ),
    "conv2d, a kernel that leaves the edge out": (lambda: nn.Conv2d(2, 3, 3, stride=3), (2, 2, 8, 7)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 5, 5)),
    "conv2d, same": (lambda: nn.Conv2d(2, 3, 4, padding="same", dilation=2), (2, 2, 7, 6)),
    "conv2d, valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 2, 4, 4)),
    "conv2d, reflect": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (2, 2, 5, 6)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 3, 4, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5)),
    "group norm, pixels": (lambda: nn.GroupNorm(4, 4), (2, 4, 3, 2)),
    "batch norm": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "batch norm, pixels": (lambda: nn.BatchNorm2d(4), (3, 4, 2, 3)),
    "batch norm, evaluating": (lambda: nn.BatchNorm1d(4).eval(), (5, 4)),
}
ROWS: dict[str, Case] = {
    "embedding": (lambda: nn.Embedding(6, 4), (3, 5)),
    "embedding, one row a sample": (lambda: nn.Embedding(6, 4), (7,)),
    "embedding, padding": (lambda: nn.Embedding(6, 4, padding_idx=2), (3, 5)),
    "embedding, scaled by frequency": (lambda: nn.Embedding(6, 4, scale_grad_by_freq=True), (3, 5)),
    "embedding, bounded norm": (lambda: nn.Embedding(6, 4, max_norm=0.5), (3, 5)),
}
ALL = LAST | CHANNELS | ROWS
# What a module does to one sample depends on the others.
TIED = {"batch norm", "batch norm, pixels", "embedding, scaled by frequency"}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The module, an input and a gradient in its output; a third of both is exactly zero."""
    torch.manual_seed(len(name))
    build, shape = ALL[name]
    module = build().to(dtype)
    if name in ROWS:
        x = torch.randint(0, 5, shape)  # row 5 is never used
    else:
        x = torch.where(torch.rand(shape) < 0.3, 0.0, torch.randn(shape)).to(dtype)
    d = torch.randn(module(x).shape)
    return module, x, torch.where(torch.rand(d.shape) < 0.3, 0.0, d).to(dtype)


def contributions(module: nn.Module, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    kind = kind_of(module)
    assert kind is not None
    leaves = dict(module.named_parameters())
    return {leaf: one for leaf, one in kind(module, x, d).items() if leaf in leaves}


def gradients(module: nn.Module, x: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = dict(module.named_parameters())
    found = torch.autograd.grad(module(x), list(leaves.values()), d, allow_unused=True)
    return dict(zip(leaves, (torch.zeros(()) if one is None else one for one in found), strict=True))


def positions_of(name: str, module: nn.Module, d: torch.Tensor) -> list[tuple[Any, ...]]:
    """An index into d for every position."""
    if name in CHANNELS:
        batched = d.ndim > (len(module.stride) + 1 if hasattr(module, "stride") else 1)  # type: ignore[arg-type]
        axes = (d.shape[:1] if batched else ()) + d.shape[2 if batched else 1 :]
        indices = itertools.product(*map(range, axes))
        return [
            (*index[:1], slice(None), *index[1:]) if batched else (slice(None), *index) for index in indices
        ]
    own = len(getattr(module, "normalized_shape", (1,)))
    return list(itertools.product(*map(range, d.shape[: d.ndim - own])))


def like(contribution: Contribution, module: nn.Module, leaf: str) -> torch.Tensor:
    return torch.zeros_like(module.get_parameter(leaf))


@pytest.mark.parametrize("name", ALL)
def test_positions_add_up_to_the_gradient_and_their_squares_and_support_to_a_loop(name: str) -> None:
    module, x, d = made(name)
    uses = contributions(module, x, d)
    assert set(uses) == set(dict(module.named_parameters()))
    whole = gradients(module, x, d)
    indices = positions_of(name, module, d)
    sumsq = {leaf: like(use, module, leaf) for leaf, use in uses.items()}
    support = {leaf: like(use, module, leaf) for leaf, use in uses.items()}
    for index in indices:
        alone = torch.zeros_like(d)
        alone[index] = d[index]
        for leaf, one in gradients(module, x, alone).items():
            sumsq[leaf] += one.square()
            support[leaf] += one != 0
    for leaf, use in uses.items():
        assert use.positions == len(indices)
        total, squares, marks = (like(use, module, leaf) for _ in range(3))
        use.add_total(total)
        use.add_position_sumsq(squares)
        use.add_position_support(marks)
        torch.testing.assert_close(total, whole[leaf], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(squares, sumsq[leaf], rtol=1e-10, atol=1e-14)
        assert torch.equal(marks, support[leaf]), leaf


@pytest.mark.parametrize("name", sorted(set(ALL) - TIED))
def test_samples_equal_the_per_sample_gradients_of_torch_func(name: str) -> None:
    module, x, d = made(name)
    uses = contributions(module, x, d)
    batched = (next(iter(uses.values())).samples == len(x) and x.ndim > 1) or name in ROWS
    if not batched:
        x, d = x[None], d[None]

    def loss(leaves: dict[str, torch.Tensor], x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(module, leaves, (x[None],))
        return (out[0] * d).sum()

    leaves = {leaf: one.detach() for leaf, one in module.named_parameters()}
    if "bounded norm" in name:
        module.max_norm = None  # type: ignore[assignment]  # it renews rows in place, which vmap cannot
    each = vmap(grad(loss), in_dims=(None, 0, 0))(leaves, x, d)
    for leaf, use in uses.items():
        assert use.samples == len(x)
        sumsq, support, again, marks = (like(use, module, leaf) for _ in range(4))
        use.add_sample_moments(sumsq, support)
        torch.testing.assert_close(sumsq, each[leaf].square().sum(0), rtol=1e-10, atol=1e-14)
        assert torch.equal(support, (each[leaf] != 0).sum(0).to(support.dtype))
        add_sample_moments([use], again, marks, torch.empty_like(again))
        torch.testing.assert_close(again, sumsq, rtol=1e-10, atol=1e-14)
        assert torch.equal(marks, support)


@pytest.mark.parametrize("name", [name for name in ALL if name not in TIED])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_low_precision_is_summed_in_float32(name: str, dtype: torch.dtype, tolerance: float) -> None:
    module, x, d = made(name, dtype)
    wide = module.to(torch.float64)
    for leaf, use in contributions(module, x, d).items():
        found, oracle = like(use, wide, leaf).float(), like(use, wide, leaf)
        use.add_position_sumsq(found)
        contributions(wide, x if name in ROWS else x.double(), d.double())[leaf].add_position_sumsq(oracle)
        torch.testing.assert_close(
            found.double(), oracle, rtol=tolerance, atol=tolerance * float(oracle.max())
        )


@pytest.mark.parametrize("name", [name for name in ALL if " norm" not in name or name in ROWS])
def test_input_moments_equal_those_of_unfolded_inputs(name: str) -> None:
    module, x, d = made(name)
    use: Any = contributions(module, x, d)["weight"]
    moments: InputMoments = use
    rows = unfolded(name, module, x)  # (positions, groups, inputs of a group)
    flat = rows.flatten(1)
    assert (moments.positions, moments.inputs) == flat.shape
    total, sumsq = torch.zeros(2, moments.inputs, dtype=torch.float64)
    moments.add_input_sum(total)
    moments.add_input_sumsq(sumsq)
    torch.testing.assert_close(total, flat.sum(0))
    torch.testing.assert_close(sumsq, flat.square().sum(0))
    gram = torch.zeros(rows.shape[1], rows.shape[2], rows.shape[2], dtype=torch.float64)
    if name in ROWS or isinstance(module, nn.Conv3d):
        with pytest.raises(UnsupportedError, match="Gram matrix"):
            moments.add_input_gram(gram)
    else:
        moments.add_input_gram(gram)
        torch.testing.assert_close(gram, torch.einsum("ngi,ngj->gij", rows, rows))


def unfolded(name: str, module: Any, x: torch.Tensor) -> torch.Tensor:
    """What each position multiplies its weights by, by definition: the derivative of outputs by weights."""
    if name in ROWS:
        return torch.nn.functional.one_hot(x.flatten(), 6).double()[:, None]
    if name in LAST:
        return x.reshape(-1, 1, x.shape[-1])
    out = module(x)
    groups, per_group = module.groups, module.out_channels // module.groups
    found = []
    for index in positions_of(name, module, out):
        # The first output channel of each group has the patch of that group as its derivative.
        weight = [
            torch.autograd.grad(out[index][group * per_group], module.weight, retain_graph=True)[0]
            for group in range(groups)
        ]
        found.append(torch.stack([one[group * per_group].flatten() for group, one in enumerate(weight)]))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["linear, tokens", "Conv1D of GPT-2", "conv2d", "embedding", "layer norm"])
@pytest.mark.parametrize("zeros", ["neither", "x", "d", "all of x", "all of d"])
def test_support_is_exact_wherever_the_zeros_are(name: str, zeros: str) -> None:
    module, x, d = made(name)
    if name not in ROWS:
        x = torch.where(x == 0, 1.5, x) if zeros in ("neither", "d", "all of d") else x
        x = torch.zeros_like(x) if zeros == "all of x" else x
    d = torch.where(d == 0, 1.5, d) if zeros in ("neither", "x", "all of x") else d
    d = torch.zeros_like(d) if zeros == "all of d" else d
    for leaf, use in contributions(module, x, d).items():
        counted, found = like(use, module, leaf), like(use, module, leaf)
        for index in positions_of(name, module, d):
            alone = torch.zeros_like(d)
            alone[index] = d[index]
            counted += gradients(module, x, alone)[leaf] != 0
        use.add_position_support(found)
        assert torch.equal(found, counted)


@pytest.mark.parametrize("name", ["linear, tokens", "conv2d", "embedding", "layer norm"])
def test_an_empty_batch_contributes_nothing(name: str) -> None:
    module, x, d = made(name)
    for leaf, use in contributions(module, x[:0], d[:0]).items():
        out, marks = like(use, module, leaf), like(use, module, leaf)
        use.add_total(out)
        use.add_position_sumsq(out)
        use.add_position_support(out)
        use.add_sample_moments(out, marks)
        assert not out.any()
        assert not marks.any()


def test_support_below_the_smallest_float_is_still_counted() -> None:
    module = nn.Linear(2, 1, bias=False)
    tiny = torch.full((3, 2), 1e-30)
    use = contributions(module, tiny, torch.full((3, 1), 1e-30))["weight"]
    support, sumsq = torch.zeros(2, 1, 2)
    use.add_position_sumsq(sumsq)
    use.add_position_support(support)
    assert not sumsq.any()
    assert (support == 3).all()


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most elements of any tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.untyped_storage().nbytes() // one.element_size())
        return out


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(40, 30), (16, 2, 40)),
        (nn.Conv2d(20, 20, 3), (16, 20, 4, 4)),
        (nn.Embedding(300, 10), (16, 3)),
    ],
    ids=["linear", "conv2d", "embedding"],
)
def test_no_tensor_of_samples_times_parameters_is_made(module: nn.Module, shape: tuple[int, ...]) -> None:
    embedding = isinstance(module, nn.Embedding)
    x = torch.randint(0, 300, shape) if embedding else torch.randn(shape)
    use = contributions(module, x, torch.randn(module(x).shape))["weight"]
    weight = module.get_parameter("weight")
    out = torch.zeros_like(weight)
    with torch.no_grad(), LargestTensor() as memory:  # type: ignore[no-untyped-call]
        use.add_total(out)
        use.add_position_sumsq(out)
        use.add_position_support(out)
        use.add_sample_moments(out, out.clone())
        add_sample_moments([use], out, out.clone(), torch.empty_like(out))
    assert memory.largest <= 2 * weight.numel()

"""`routed_linear` as a torch operator: gradients, compilation, transforms, the kept plan, argument checks."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradtrace.errors import GradtraceError, InvalidValueError, MismatchError, UnsupportedError
from gradtrace.kernels import routed_backward, routing
from gradtrace.kernels.routed_linear import routed_linear, routed_linear_reference

# (inputs, outputs) of each sub-operator, on 6 inputs and 5 outputs
Parts = tuple[tuple[list[int], list[int]], ...]
DISJOINT: Parts = (([4, 0], [1, 3]), ([2, 5, 1], [0]))
SHARED: Parts = (([4, 0, 2], [1, 3]), ([2, 0, 1], [0, 1]), ([2], [1]))
SPARE: Parts = (([], [2]), ([3, 1], []), ([5], [4]))
STRUCTURES = pytest.mark.parametrize(
    "parts", [DISJOINT, SHARED, SPARE, ()], ids=["disjoint", "shared", "spare", "none"]
)


def arguments(parts: Parts, dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[Any, ...]:
    """Arguments of `routed_linear` after x, for 6 inputs and 5 outputs."""
    torch.manual_seed(3)
    sizes = [[len(part[side]) for part in parts] for side in (0, 1)]
    ins, outs = (
        torch.tensor([index for part in parts for index in part[side]], dtype=torch.int64) for side in (0, 1)
    )
    weight = torch.randn(sum(k * n for k, n in zip(*sizes, strict=True)), dtype=dtype)
    return weight, torch.randn(5, dtype=dtype) if bias else None, ins, outs, *sizes, 5


def trainable(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("shape", [(4, 6), (2, 1, 6), (6,)], ids=str)
@STRUCTURES
def test_gradients_of_x_weight_and_bias_equal_numerical_ones(parts: Parts, shape: tuple[int, ...]) -> None:
    weight, bias, *rest = arguments(parts, torch.float64)
    x, weight, bias = trainable(torch.randn(shape, dtype=torch.float64), weight, bias)
    assert torch.autograd.gradcheck(lambda *given: routed_linear(*given, *rest), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *given: routed_linear(*given, *rest), (x, weight, bias))


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_each_gradient_is_there_when_it_alone_is_wanted(chosen: int) -> None:
    weight, bias, *rest = arguments(DISJOINT)
    given: list[Any] = [torch.randn(3, 6), weight, bias]
    given[chosen].requires_grad_()
    torch.autograd.backward([routed_linear(*given, *rest).sum()])
    assert [tensor.grad is not None for tensor in given] == [k == chosen for k in range(3)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@STRUCTURES
def test_the_operator_passes_opcheck(parts: Parts, dtype: torch.dtype, bias: bool) -> None:
    weight, offset, *rest = arguments(parts, dtype, bias)
    x = torch.randn(2, 3, 6, dtype=dtype)
    given = trainable(x, weight) + (trainable(offset) if offset is not None else [None])
    torch.library.opcheck(torch.ops.gradtrace.routed_linear, (*given, *rest))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when inductor is loaded
@pytest.mark.parametrize(
    ("training", "backend"), [(True, "aot_eager"), (False, "aot_eager"), (False, "inductor")]
)
def test_it_compiles_without_a_graph_break(training: bool, backend: str) -> None:
    weight, bias, *rest = arguments(SHARED)
    x = torch.randn(4, 6)
    plain, compiled = (trainable(x, weight, bias) if training else [x, weight, bias] for _ in range(2))

    def layer(*given: Any) -> Tensor:
        # No other arithmetic: inductor would start a C++ compiler for it, which takes long.
        return routed_linear(*given, *rest).t()

    expected = layer(*plain)
    got = torch.compile(layer, fullgraph=True, backend=backend)(*compiled)
    torch.testing.assert_close(got, expected)
    if training:
        upstream = torch.randn(5, 4)
        torch.autograd.backward([expected, got], [upstream, upstream])
        for a, b in zip(compiled, plain, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_the_number_of_tokens_may_vary_in_a_compiled_function() -> None:
    weight, bias, *rest = arguments(DISJOINT)
    compiled = torch.compile(
        lambda x: routed_linear(x, weight, bias, *rest), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for tokens in (5, 9, 2):
        x = torch.randn(tokens, 6)
        torch.testing.assert_close(compiled(x), routed_linear(x, weight, bias, *rest))


def test_a_function_transform_is_refused_rather_than_given_no_gradient() -> None:
    weight, bias, *rest = arguments(DISJOINT)
    x = torch.randn(4, 6)
    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.grad(lambda weight: routed_linear(x, weight, bias, *rest).sum())(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_direct_and_the_dispatched_call_give_the_same_bits(dtype: torch.dtype) -> None:
    weight, bias, *rest = arguments(SHARED, dtype)
    x = torch.randn(7, 6, dtype=dtype)
    direct = routed_linear(x, weight, bias, *rest)
    assert torch.equal(direct, torch.ops.gradtrace.routed_linear(x, weight, bias, *rest))
    torch.testing.assert_close(direct, routed_linear_reference(x, weight, bias, *rest))


@pytest.mark.parametrize("training", [True, False])
def test_under_autocast_it_behaves_like_linear(training: bool) -> None:
    weight, bias, *rest = arguments(DISJOINT)
    given: list[Any] = [torch.randn(4, 6), weight, bias]
    given = trainable(*given) if training else given
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = routed_linear(*given, *rest)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), routed_linear(*given, *rest), rtol=3e-2, atol=3e-2)
    if training:
        torch.autograd.backward([y.float().sum()])
        grads: list[Any] = [tensor.grad for tensor in given]
        assert [grad.dtype for grad in grads] == [torch.float32] * 3


@pytest.mark.parametrize("which", [2, 3], ids=["inputs", "outputs"])
def test_changed_indices_take_effect(which: int) -> None:
    args: list[Any] = list(arguments(DISJOINT))
    x = torch.randn(4, 6)
    before = routed_linear(x, *args)
    args[which][:2] = args[which][:2].flip(0)
    after = routed_linear(x, *args)
    assert not torch.equal(before, after)
    fresh: list[Any] = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    assert torch.equal(after, routed_linear(x, *fresh))


def test_other_outputs_or_sizes_with_the_same_inputs_take_effect() -> None:
    weight, bias, ins, outs, _, _, features = arguments(DISJOINT)
    x = torch.randn(4, 6)
    routed_linear(x, weight, bias, ins, outs, [2, 3], [2, 1], features)
    other = torch.tensor([0, 1, 2])
    got = routed_linear(x, weight, bias, ins, other, [2, 3], [2, 1], features)
    assert torch.equal(got, routed_linear(x, weight, bias, ins.clone(), other, [2, 3], [2, 1], features))
    wide = torch.randn(4 * 1 + 1 * 2)
    got = routed_linear(x, wide, bias, ins, outs, [4, 1], [1, 2], features)
    assert torch.equal(got, routed_linear(x, wide, bias, ins.clone(), outs, [4, 1], [1, 2], features))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_structure_is_planned_once(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    calls = []
    plan = routing._plan

    def counted(*given: Any) -> routing.Routing:
        calls.append(1)
        return plan(*given)

    monkeypatch.setattr(routing, "_plan", counted)
    args = arguments(DISJOINT)

    def layer(x: Tensor) -> Tensor:
        return routed_linear(x, *args)

    run = torch.compile(layer, fullgraph=True) if compiled else layer
    for _ in range(3):
        run(torch.randn(4, 6))
    assert len(calls) == 1


def test_a_plan_goes_when_its_indices_go() -> None:
    args = list(arguments(SHARED))
    routed_linear(torch.randn(2, 6), *args)
    kept = ref(routing._KEPT[id(args[2]), id(args[3])].routing)
    assert kept() is not None
    del args
    gc.collect()
    assert kept() is None


def test_indices_made_in_inference_mode_work_and_are_never_taken_from_memory() -> None:
    weight, bias, *rest = arguments(DISJOINT)
    x = torch.randn(4, 6)
    with torch.inference_mode():
        ins, outs = rest[0].clone(), rest[1].clone()
        before = routed_linear(x, weight, bias, ins, outs, *rest[2:])
        ins[:2] = ins[:2].flip(0)
        after = routed_linear(x, weight, bias, ins, outs, *rest[2:])
    assert torch.equal(before, routed_linear(x, weight, bias, *rest))
    assert not torch.equal(before, after)


def wrong(**changes: Any) -> dict[str, Any]:
    """Arguments that fit, but for the changes."""
    names = ("weight", "bias", "inputs", "outputs", "input_sizes", "output_sizes", "out_features")
    return {"x": torch.ones(2, 6)} | dict(zip(names, arguments(DISJOINT), strict=True)) | changes


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (wrong(x=torch.ones(2, 6, dtype=torch.int64)), UnsupportedError, "x"),
        (wrong(x=torch.tensor(1.0)), UnsupportedError, "x"),
        (wrong(x=torch.ones(2, 5)), InvalidValueError, r"inputs: expected indices in 0\.\.4, got 0\.\.5"),
        (wrong(x=torch.ones(2, 6).double()), MismatchError, "dtypes of x and weight"),
        (wrong(bias=torch.ones(5).double()), MismatchError, "dtypes of x and bias"),
        (wrong(bias=torch.ones(4)), MismatchError, "bias"),
        (wrong(weight=torch.ones(8)), MismatchError, r"weight: expected shape \(7,\)"),
        (wrong(weight=torch.ones(7, device="meta")), MismatchError, "devices of x and weight"),
        (wrong(inputs=torch.tensor([4, 0, 2, 5])), MismatchError, "inputs"),
        (wrong(inputs=torch.tensor([4, 0, 2, 5, 6])), InvalidValueError, "inputs"),
        (wrong(inputs=torch.tensor([4, 0, 2, 5, -1])), InvalidValueError, "inputs"),
        (wrong(inputs=torch.tensor([4, 0, 2, 5, 1], dtype=torch.int32)), MismatchError, "inputs"),
        (wrong(outputs=torch.tensor([1, 5, 0])), InvalidValueError, "outputs"),
        (wrong(outputs=torch.tensor([1, 1, 0])), InvalidValueError, "at most once"),
        (wrong(out_features=-1), InvalidValueError, "out_features"),
        (wrong(input_sizes=[2, 3, 0]), MismatchError, "input_sizes"),
        (wrong(input_sizes=[6, -1]), MismatchError, "input_sizes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    given: dict[str, Any], error: type[GradtraceError], said: str
) -> None:
    with pytest.raises(error, match=said):
        routed_linear(**given)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=str)
@STRUCTURES
def test_the_operator_of_backward_passes_opcheck(parts: Parts, wanted: tuple[bool, bool]) -> None:
    weight, _, ins, outs, *sizes, _ = arguments(parts)
    args = (torch.randn(2, 3, 6), weight, ins, outs, *sizes, torch.randn(2, 3, 5), *wanted)
    torch.library.opcheck(torch.ops.gradtrace.routed_linear_backward, args)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_backward_on_a_gpu_is_one_operator_and_plain_torch_where_it_is_differentiated(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routed_backward, "_on_gpu", lambda x: True)
    weight, bias, *rest = arguments(SHARED, torch.float64)
    given = trainable(torch.randn(4, 6, dtype=torch.float64), weight, bias)
    seen: list[str] = []

    class Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def layer(*given: Any) -> Tensor:
        return routed_linear(*given, *rest)

    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    y = run(*given)
    with Names():  # type: ignore[no-untyped-call]
        found = torch.autograd.grad(y, given, torch.ones_like(y))
    assert seen.count("gradtrace.routed_linear_backward.default") == 1
    plain = torch.autograd.grad(layer(*given), given, torch.ones_like(y), create_graph=True)
    torch.testing.assert_close(found, plain)
    if not compiled:
        assert torch.autograd.gradgradcheck(layer, given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("parts", [DISJOINT, SHARED], ids=["disjoint", "shared"])
def test_forward_and_backward_are_captured_in_a_cuda_graph(parts: Parts) -> None:
    given: list[Any] = [one.cuda() if isinstance(one, Tensor) else one for one in arguments(parts)]
    weight, bias, *rest = given
    x, weight, bias = trainable(torch.randn(4, 6, device="cuda"), weight, bias)
    upstream = torch.randn(4, 5, device="cuda")

    def step() -> tuple[Tensor, ...]:
        y = routed_linear(x, weight, bias, *rest)
        return y, *torch.autograd.grad(y, (x, weight, bias), upstream)

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # plans, and chooses forms, which a capture must not
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, expected)

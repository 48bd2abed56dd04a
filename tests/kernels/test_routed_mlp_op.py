"""`routed_mlp` as a torch operator: gradients, compilation, what the dispatcher is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradtrace.errors import MismatchError, UnknownNameError
from gradtrace.kernels.routed_mlp import routed_mlp

SIZES = ([2, 3], [3, 2], [1, 2])


def arguments(dtype: torch.dtype, gated: bool) -> dict[str, Any]:
    torch.manual_seed(1)
    k, m, n = SIZES
    weights = {"up": 12, "up_bias": 5, "down": 7, "down_bias": 4}
    given: dict[str, Any] = {name: torch.randn(size, dtype=dtype) for name, size in weights.items()}
    given |= {"inputs": torch.tensor([4, 0, 2, 5, 1]), "hidden": torch.arange(5)}
    given |= {"outputs": torch.tensor([3, 0, 2]), "input_sizes": k, "hidden_sizes": m, "output_sizes": n}
    given |= {"out_features": 4, "activation": "silu", "gate": None, "gate_bias": None}
    if gated:
        given |= {"gate": torch.randn(12, dtype=dtype), "gate_bias": torch.randn(5, dtype=dtype)}
    return given


def trainable(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: of.clone().requires_grad_() if isinstance(of, Tensor) and of.is_floating_point() else of
        for name, of in given.items()
    }


GATED = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


@GATED
@pytest.mark.parametrize("op", [routed_mlp, torch.ops.gradtrace.routed_mlp], ids=["called", "dispatched"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "gelu_tanh", "none"])
def test_gradients_equal_numerical_ones(op: Any, activation: str, gated: bool) -> None:
    given = trainable(arguments(torch.float64, gated) | {"activation": activation})
    names = [name for name, of in given.items() if isinstance(of, Tensor) and of.requires_grad]
    x = torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True)

    def apply(x: Tensor, *tensors: Tensor) -> Tensor:
        result: Tensor = op(x, *(given | dict(zip(names, tensors, strict=True))).values())
        return result

    assert torch.autograd.gradcheck(apply, (x, *(given[name] for name in names)))


@GATED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_passes_opcheck(dtype: torch.dtype, gated: bool) -> None:
    given = trainable(arguments(dtype, gated))
    x = torch.randn(3, 6, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.gradtrace.routed_mlp, (x, *given.values()))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when inductor is loaded
@GATED
@pytest.mark.parametrize(
    ("training", "backend"), [(True, "aot_eager"), (False, "aot_eager"), (False, "inductor")]
)
def test_it_compiles_without_a_graph_break(training: bool, backend: str, gated: bool) -> None:
    given = arguments(torch.float32, gated)
    plain, compiled = (trainable(given) if training else given for _ in range(2))
    x = torch.randn(3, 6)

    def apply(x: Tensor, given: dict[str, Any]) -> Tensor:
        return routed_mlp(x, *given.values())

    expected = apply(x, plain)
    got = torch.compile(apply, fullgraph=True, backend=backend)(x, compiled)
    torch.testing.assert_close(got, expected)
    if training:
        torch.autograd.backward([expected.sum(), got.sum()])
        for name in ("up", "down", "up_bias"):
            torch.testing.assert_close(compiled[name].grad, plain[name].grad)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"activation": "tanh"}, UnknownNameError),
        ({"up": torch.randn(11)}, MismatchError),
        ({"down": torch.randn(8)}, MismatchError),
        ({"gate": torch.randn(3)}, MismatchError),
        ({"gate": torch.randn(12), "gate_bias": torch.randn(4)}, MismatchError),
        ({"down_bias": torch.randn(3)}, MismatchError),
        ({"hidden_sizes": [3, 3]}, MismatchError),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        routed_mlp(torch.randn(2, 6), *(arguments(torch.float32, False) | change).values())

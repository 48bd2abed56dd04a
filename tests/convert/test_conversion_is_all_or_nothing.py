"""convert_ and apply_mask_ change exactly what the plan says, or nothing at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import prune

import gradtrace as gt
from gradtrace.convert.linears import linears
from gradtrace.errors import GradtraceError, InvalidValueError, MismatchError, StateError, UnsupportedError
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.trimmed import trimmed

Masks = dict[str, NDArray[np.bool_]]
MasksOf = Callable[..., Masks]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 16, bias=False))


def planned(model: nn.Module, masks: Masks, dense: tuple[str, ...] = ()) -> Plan:
    """The dead rows and columns of every mask removed, but for the layers in `dense`."""
    layers = {}
    for parameter, mask in masks.items():
        name = parameter.removesuffix("weight").rstrip(".")
        decision = ("dense", ()) if name in dense else ("trimmed", trimmed(mask))
        layers[name] = LayerPlan(*decision, mask, 1.0, 1.0, None, "")
    return Plan(layers)


def snapshot(model: nn.Module) -> tuple[list[int], dict[str, Tensor]]:
    modules = [id(module) for module in model.modules()]
    return modules, {name: value.clone() for name, value in model.state_dict().items()}


def compiled_of(model: nn.Module) -> nn.Module:
    wrapped = torch.compile(copy.deepcopy(model), backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def assert_untouched(model: nn.Module, before: tuple[list[int], dict[str, Tensor]]) -> None:
    modules, state = snapshot(model)
    assert modules == before[0]
    assert state.keys() == before[1].keys()
    assert all(torch.equal(value, before[1][name]) for name, value in state.items())


def assert_equal_outputs(model: nn.Module, reference: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected, got = reference.eval()(*inputs), model.eval()(*inputs)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_converted_model_is_the_same_object_and_equals_the_masked_one(masks_of: MasksOf) -> None:
    model = mlp()
    plan = planned(model, masks_of(model))
    reference = gt.apply_mask_(copy.deepcopy(model), plan)
    assert gt.convert_(model, plan) is model
    assert [type(module).__name__ for module in model] == ["RoutedLinear", "ReLU", "Dropout", "RoutedLinear"]
    assert_equal_outputs(model, reference, torch.randn(5, 24))


def test_gradients_equal_those_of_the_masked_model(masks_of: MasksOf) -> None:
    model = mlp().double().eval()
    plan = planned(model, masks_of(model))
    reference = gt.apply_mask_(copy.deepcopy(model), plan)
    gt.convert_(model, plan)
    x = torch.randn(5, 24, dtype=torch.float64)
    for either in (model, reference):
        either(x).square().sum().backward()
    for name, layer in linears(reference).items():
        routed = model.get_submodule(name)
        assert isinstance(routed, gt.RoutedLinear)
        assert routed.weight.grad is not None
        assert layer.parameter.grad is not None
        for block, part in zip(routed.blocks(routed.weight.grad), routed.sub_operators, strict=True):
            expected = layer.parameter.grad.numpy()[np.ix_(part.outputs, part.inputs)]
            np.testing.assert_allclose(block.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_converted_model_trains(masks_of: MasksOf) -> None:
    model = mlp()
    gt.convert_(model, planned(model, masks_of(model)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, losses = torch.randn(64, 24), []
    target = x[:, :16].relu()
    for _ in range(30):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("masked", [False, True])
def test_layers_left_dense_keep_their_weights_unless_masked(masks_of: MasksOf, masked: bool) -> None:
    model = mlp()
    masks = masks_of(model)
    plan = planned(model, masks, dense=("3",))
    before = model.get_parameter("3.weight").detach().clone()
    reference = gt.apply_mask_(copy.deepcopy(model), plan, masked=masked)
    gt.convert_(model, plan, masked=masked)
    kept = torch.from_numpy(masks["3.weight"])
    assert type(model[3]) is nn.Linear
    assert torch.equal(model[3].weight, before * kept if masked else before)
    assert_equal_outputs(model, reference, torch.randn(5, 24))


def test_apply_mask_zeroes_exactly_what_a_mask_drops(masks_of: MasksOf) -> None:
    model = nn.Sequential(nn.Embedding(10, 24), nn.Linear(24, 40))
    masks = masks_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert gt.apply_mask_(model, gt.Mask(masks)) is model
    for name, mask in masks.items():
        assert torch.equal(model.state_dict()[name], before[name] * torch.from_numpy(mask))
    assert torch.equal(model.get_parameter("1.bias"), before["1.bias"])


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (
            lambda masks: masks.update({"7.weight": masks["0.weight"]}),
            MismatchError,
            "the mask names '7.weight'",
        ),
        (lambda masks: masks.update({"3.weight": masks["0.weight"]}), MismatchError, r"expected \(16, 40\)"),
        (
            lambda masks: masks.update({"3.weight": masks["3.weight"] * 1}),
            InvalidValueError,
            "a bool array, got int",
        ),
        (
            lambda masks: masks.update({"3.weight": [[True], [True, False]]}),
            InvalidValueError,
            "mask of '3.weight': expected a bool array",
        ),
        (
            lambda masks: masks.update({"_orig_mod.3.weight": ~masks["3.weight"]}),
            MismatchError,
            "two things of one parameter: got '3.weight' and '_orig_mod.3.weight'",
        ),
    ],
    ids=["no such parameter", "another shape", "no bools", "ragged", "twice"],
)
def test_a_mask_of_another_model_zeroes_nothing(
    masks_of: MasksOf, edit: Callable[[Masks], None], error: type[GradtraceError], words: str
) -> None:
    model = mlp()
    before = snapshot(model)
    masks = masks_of(model)
    edit(masks)
    with pytest.raises(error, match=words):
        gt.apply_mask_(model, masks)
    assert_untouched(model, before)


def test_a_second_layer_that_fails_leaves_the_first_as_it_was(
    masks_of: MasksOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlp()
    plan = planned(model, masks_of(model))
    before = snapshot(model)
    real, built = gt.RoutedLinear.from_linear, list[gt.RoutedLinear]()

    def fail(linear: nn.Linear, layer_plan: LayerPlan) -> gt.RoutedLinear:
        if built:
            raise MemoryError("the second layer")
        built.append(real(linear, layer_plan))
        return built[0]

    monkeypatch.setattr(gt.RoutedLinear, "from_linear", fail)
    with pytest.raises(MemoryError, match="the second layer"):
        gt.convert_(model, plan, masked=True)
    assert len(built) == 1
    assert_untouched(model, before)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40)
        self.embedding = nn.Embedding(16, 40)
        self.head = nn.Linear(40, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.first(x))
        return out


def hooked() -> nn.Module:
    model = mlp()
    model[3].register_forward_hook(lambda module, args, out: out * 2)
    return model


def hooked_parameter() -> nn.Module:
    model = mlp()
    model.get_parameter("3.weight").register_hook(lambda grad: grad * 2)  # type: ignore[no-untyped-call]
    return model


def pruned() -> nn.Module:
    model = mlp()
    prune.random_unstructured(model[3], "weight", 0.5)  # type: ignore[no-untyped-call]
    return model


def patched() -> nn.Module:
    model = mlp()
    model[3].forward = lambda x: x
    return model


class OwnKey(nn.Sequential):
    """An encoder layer whose attention adds a key to those it is given: it has to stay as it is."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(24, 40), nn.TransformerEncoderLayer(40, 4, 16, batch_first=True))
        self.get_submodule("1.self_attn").add_zero_attn = True  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "refused", "words"),
    [
        (Tied, "head", r"layer 'head' .* also 'embedding.weight'"),
        (hooked, "3", "layer '3' carries forward hooks"),
        (hooked_parameter, "3", "layer '3' carries parameter backward hooks"),
        (pruned, "3", "layer '3' .* computed by a hook"),
        (patched, "3", "layer '3' .* forward has been replaced"),
        (OwnKey, "1.linear1", r"layer '1\.self_attn\.q_proj' .* a key of its own"),
        (lambda: nn.Linear(24, 16), "", "it is the whole model"),
    ],
    ids=["tied", "hook", "parameter hook", "pruned", "patched", "own key", "root"],
)
def test_a_layer_that_cannot_be_replaced_is_refused_by_name_and_nothing_is_changed(
    make: Callable[[], nn.Module], refused: str, words: str
) -> None:
    model = make()
    masks = {name: np.ones(layer.shape, dtype=np.bool_) for name, layer in linears(model).items()}
    plan = planned(model, {f"{name}.weight": mask for name, mask in masks.items()})
    assert refused in plan
    before = snapshot(model)
    with pytest.raises(UnsupportedError, match=words):
        gt.convert_(model, plan)
    assert_untouched(model, before)


def test_a_plan_leaves_what_cannot_be_replaced_dense_and_says_why(device: SimpleNamespace) -> None:
    model = Tied()
    masks = {name: np.zeros(layer.shape, dtype=np.bool_) for name, layer in linears(model).items()}
    plan = gt.plan(model, {f"{name}.weight": mask for name, mask in masks.items()}, refuse=False)
    assert plan.converted == ("first",)
    assert (
        plan["head"].reason
        == "stays dense: its weight is also 'embedding.weight': converting it would untie them"
    )
    gt.convert_(model, plan)
    assert model.head.weight is model.embedding.weight


def test_the_layers_beside_an_attention_that_must_stay_say_so() -> None:
    obstacle = linears(OwnKey())["1.linear2"].obstacle
    assert obstacle.startswith("it needs the attention of its nn.TransformerEncoderLayer replaced too, but ")


def test_an_attention_that_is_the_whole_model_says_so() -> None:
    layers = linears(nn.MultiheadAttention(8, 2))
    assert list(layers) == ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert {layer.obstacle for layer in layers.values()} == {
        "it is the whole model: wrap it, for instance in nn.Sequential"
    }


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (lambda layers: layers.update({"9": layers["3"]}), MismatchError, "no linear layer '9'"),
        (
            lambda layers: layers.update({"1": layers["3"]}),
            UnsupportedError,
            "'1' is a ReLU: expected nn.Linear",
        ),
        (
            lambda layers: layers.update({"3": layers["0"]}),
            MismatchError,
            r"layer '3': expected .* \(40, 24\), got \(16",
        ),
    ],
    ids=["no such module", "no linear layer", "another shape"],
)
def test_a_plan_of_another_model_is_refused_and_nothing_is_changed(
    masks_of: MasksOf, edit: Callable[[dict[str, LayerPlan]], None], error: type[GradtraceError], words: str
) -> None:
    model = mlp()
    layers = dict(planned(model, masks_of(model)))
    edit(layers)
    before = snapshot(model)
    for change in (gt.convert_, gt.apply_mask_):
        with pytest.raises(error, match=words):
            change(model, Plan(layers), masked=True)
    assert_untouched(model, before)


def test_converting_twice_is_refused(masks_of: MasksOf) -> None:
    model = mlp()
    plan = planned(model, masks_of(model))
    gt.convert_(model, plan)
    before = snapshot(model)
    with pytest.raises(StateError, match="layer '0' has been converted already"):
        gt.convert_(model, plan)
    assert_untouched(model, before)


def test_what_is_no_plan_is_refused(masks_of: MasksOf) -> None:
    model = mlp()
    with pytest.raises(InvalidValueError, match="plan: expected a Plan"):
        gt.convert_(model, masks_of(model))  # type: ignore[arg-type]


def test_a_wrapped_model_is_told_to_pass_its_module(masks_of: MasksOf) -> None:
    model = mlp()
    plan = planned(model, masks_of(model))
    with pytest.raises(MismatchError, match=r"model\.module"):
        gt.convert_(nn.DataParallel(model), plan)
    with pytest.raises(MismatchError, match=r"model\.module"):
        gt.apply_mask_(nn.DataParallel(model), masks_of(model))


def test_a_layer_that_hangs_in_two_places_is_replaced_in_both() -> None:
    shared = nn.Linear(24, 24)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)})
    mask = np.random.default_rng(0).random((24, 24)) < 0.3
    assert list(linears(model)) == ["a"]
    reference = gt.apply_mask_(copy.deepcopy(model), {"b.1.weight": mask})
    gt.convert_(model, planned(model, {"a.weight": mask}))
    assert isinstance(model["a"], gt.RoutedLinear)
    assert model.get_submodule("b.1") is model["a"]
    assert_equal_outputs(model["b"], reference["b"], torch.randn(5, 24))


def test_an_alias_in_the_mask_plans_the_layer(device: SimpleNamespace) -> None:
    shared = nn.Linear(24, 24)
    model = nn.ModuleDict({"a": shared, "b": shared})
    plan = gt.plan(model, {"b.weight": np.zeros((24, 24), dtype=np.bool_)})
    assert plan.converted == ("a",)


def test_two_names_of_one_weight_may_agree_and_must_not_differ(device: SimpleNamespace) -> None:
    shared = nn.Linear(24, 24)
    model = nn.ModuleDict({"a": shared, "b": shared})
    mask = np.zeros((24, 24), dtype=np.bool_)
    assert gt.plan(model, {"a.weight": mask, "b.weight": mask.copy()}).converted == ("a",)
    with pytest.raises(MismatchError, match=r"two things of one parameter: got 'a\.weight' and 'b\.weight'"):
        gt.plan(model, {"a.weight": mask, "b.weight": ~mask})


def spectral_normed() -> nn.Module:
    model = mlp()
    nn.utils.spectral_norm(model[3])
    return model


@pytest.mark.parametrize("make", [pruned, spectral_normed])
def test_a_mask_that_a_hook_would_undo_is_refused(make: Callable[[], nn.Module], masks_of: MasksOf) -> None:
    plan = planned(mlp(), masks_of(mlp()))
    model = make()
    before = snapshot(model)
    with pytest.raises(
        UnsupportedError, match="layer '3' cannot be masked: its weight is computed by a hook"
    ):
        gt.apply_mask_(model, plan)
    assert_untouched(model, before)
    with pytest.raises(
        UnsupportedError, match="layer '3' cannot be masked: its weight is computed by a hook"
    ):
        gt.convert_(model, planned(mlp(), masks_of(mlp()), dense=("0", "3")), masked=True)
    assert_untouched(model, before)


def test_a_lazy_layer_has_to_run_once_first() -> None:
    with pytest.raises(UnsupportedError, match=r"'0\.weight' has no shape yet\. Run the model once"):
        gt.plan(nn.Sequential(nn.LazyLinear(3)), {"0.weight": np.ones((3, 4), dtype=np.bool_)})


@pytest.mark.parametrize("model", [None, mlp().state_dict(), "model.ckpt"], ids=["none", "state", "path"])
@pytest.mark.parametrize(
    "use",
    [
        lambda model, path: gt.plan(model, {}),
        lambda model, path: gt.convert_(model, Plan({})),
        lambda model, path: gt.apply_mask_(model, {}),
        lambda model, path: gt.save(model, path),
        lambda model, path: gt.load(model, path),
        lambda model, path: gt.verify(mlp(), model, torch.randn(2, 24)),
        lambda model, path: gt.verify(model, mlp(), torch.randn(2, 24)),
    ],
    ids=["plan", "convert_", "apply_mask_", "save", "load", "verify", "verify against"],
)
def test_what_is_no_model_is_refused(
    use: Callable[[object, Path], object], model: object, tmp_path: Path
) -> None:
    with pytest.raises(InvalidValueError, match=r"model: expected an nn\.Module, got "):
        use(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_bias_that_two_layers_share_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].bias = model[0].bias
    gt.convert_(model, planned(model, {"0.weight": np.eye(8, dtype=np.bool_)}))
    assert model[0].bias is model[1].bias


def test_modes_devices_dtypes_and_frozen_weights_are_kept(masks_of: MasksOf) -> None:
    model = mlp().to(torch.bfloat16)
    model[3].eval()
    model[0].weight.requires_grad_(False)
    gt.convert_(model, planned(model, masks_of(model)))
    assert [module.training for module in model] == [True, True, True, False]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("called_before", [False, True])
def test_the_layers_inside_a_compiled_model_are_converted(masks_of: MasksOf, called_before: bool) -> None:
    plain = mlp().eval()
    compiled = compiled_of(plain)
    masks = masks_of(plain)
    x = torch.randn(5, 24)
    if called_before:
        compiled(x)
    assert list(linears(compiled)) == ["0", "3"]
    plan = planned(plain, masks)
    gt.convert_(compiled, plan)
    assert_equal_outputs(compiled, gt.apply_mask_(plain, plan), x)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_layer_that_is_compiled_alone_is_converted_inside_its_wrapper(called_before: bool) -> None:
    plain = nn.Sequential(nn.Linear(24, 40)).eval()
    model = nn.Sequential(compiled_of(plain[0]))
    mask = np.random.default_rng(0).random((40, 24)) < 0.3
    x = torch.randn(5, 24)
    if called_before:
        model(x)
    plan = planned(model, {"0.weight": mask})
    gt.convert_(model, plan)
    assert isinstance(model[0]._orig_mod, gt.RoutedLinear)
    assert_equal_outputs(model, gt.apply_mask_(plain, plan), x)


def test_masks_may_name_a_compiled_models_parameters_either_way(masks_of: MasksOf) -> None:
    plain = mlp()
    masks = masks_of(plain)
    compiled = compiled_of(plain)
    gt.apply_mask_(compiled, {f"_orig_mod.{name}": mask for name, mask in masks.items()})
    gt.apply_mask_(plain, masks)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), compiled.parameters(), strict=True))

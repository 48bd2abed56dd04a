"""Every kernel in every form that a GPU can be given, as what Triton's compiler needs to know of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from gradtrace.kernels import routed_gradients_triton, routed_mlp_triton
from gradtrace.kernels.accumulate_triton import _PARTS, _SIZE, _WARPS, _accumulate_kernel
from gradtrace.kernels.routed_linear_triton import FORMS, Form, _routed_linear_kernel, smaller

__all__ = ["TARGETS", "Variant", "few_variants", "variants"]

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


@dataclass(frozen=True, eq=False)
class Variant:
    """One kernel with its constants."""

    kernel: Any
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    aligned: tuple[str, ...] = ()
    """Arguments that are multiples of 16 where it counts: Triton tells at the call."""


_SOME = (
    ("accumulate", "weight 8"),
    ("routed_linear", "fp32,", "gelu, gate, whole"),
    ("routed_linear", "bf16,", "in order, silu, whole"),
    ("routed_linear", "bf16,", "turned, whole"),
    ("routed_mlp bf16, 64 outputs", "gate"),
    ("routed_weights, bf16",),
)


def variants() -> list[Variant]:
    """All of them, each once."""
    every = (*_accumulate(), *_routed_linear(), *_routed_mlp(), *_routed_weights())
    return list({variant.name: variant for variant in every}.values())


def few_variants() -> list[Variant]:
    """Some of each kernel, in the largest form: what a test can compile each time."""
    chosen: dict[tuple[str, ...], Variant] = {}
    for variant in variants():
        for words in _SOME:
            if all(word in variant.name for word in words):
                chosen.setdefault((variant.name.split(",")[0], *words), variant)
    return list(chosen.values())


def _accumulate() -> Iterator[Variant]:
    rows = [("fp32", False, 0.0, 1), ("fp32", True, 0.25, 8), ("fp32", False, 0.0, 0)]
    rows += [("bf16", True, 0.0, 1), ("fp16", True, 0.0, 1), ("fp64", True, 0.1, 8)]
    for dtype, extras, threshold, weight in rows:
        signature = {
            "addresses": "*i64", "members": "*i64", "owner": "*i32", "begin": "*i64",
            "grad_sum": "*fp32", "grad_sumsq": "*fp32", "events": "*i16", "votes": "*i16",
            "flags": "*i32", "scale": "*fp32", "skip": "*fp32",
        }  # fmt: skip
        constants = {
            "DTYPE": getattr(triton.language, _DTYPES[dtype]),
            "WIDE": triton.language.float64 if dtype == "fp64" else triton.language.float32,
            "THRESHOLD": threshold,
            "WEIGHT": weight,
            "HAS_SCALE": extras,
            "HAS_SKIP": extras,
            "PARTS": _PARTS,
            "SIZE": _SIZE,
        }
        said = f"{dtype}, weight {weight}" + (", scale and skip" if extras else "")
        yield Variant(_accumulate_kernel, f"accumulate {said}", signature, constants, _WARPS, 3)


def _routed_linear() -> Iterator[Variant]:
    for (size, of, loads), form in FORMS.items():
        for dtype in ("fp32", "fp32 as tf32") if of == "float32" else ("bf16", "fp16"):
            smallest = form._replace(tokens=min(form.tokens, 32), rows=min(form.rows, 16))
            yield _routed(f"{size} tokens", dtype, form, "gathered, gelu, gate", loads)
            yield _routed(f"{size} tokens", dtype, form, "in order, silu", loads)
            yield _routed(f"{size} tokens", dtype, form, "gathered, split", loads)
            turned = FORMS[size, of, "single"]
            yield _routed(f"{size} tokens", dtype, turned, "gathered, turned", loads)
            for other in smaller(form):
                yield _routed(f"{size} tokens", dtype, other, "gathered, gelu, gate", loads)
            yield _routed(f"{size} tokens", dtype, smallest, "gathered, gelu, gate", loads)


def _routed(problem: str, given: str, form: Form, way: str, loads: str) -> Variant:
    dtype, _, precision = given.partition(" as ")
    gathered, split, whole = way.startswith("gathered"), way.endswith("split"), loads == "whole"
    turned = way.endswith("turned")
    signature = {
        "x": f"*{dtype}", "weight": f"*{dtype}", "bias": f"*{dtype}", "times": f"*{dtype}",
        "inputs": "*i32", "columns": "*i32", "z": "*fp32" if split else f"*{dtype}", "tiles": "*i64",
        "tile_count": "i32", "tokens": "i32", "x_row": "i64", "z_row": "i64", "z_piece": "i64",
    }  # fmt: skip
    constants = {
        "x_column": 1,
        "HAS_BIAS": not split and not turned,
        "HAS_TIMES": way.endswith("gate"),
        "ACTIVATION": "none" if split or turned else "gelu" if gathered else "silu",
        "INDEXED": gathered,
        "SCATTERED": gathered and not whole and not split,
        "ALIGNED": whole,
        "EVEN": whole,
        "TURNED": turned,
        "WIDEN": False,
        "PRECISION": precision or "ieee",
        "TOKENS": form.tokens,
        "ROWS": form.rows,
        "DEPTH": form.depth,
    }
    # Triton turns arguments that are 1 into constants.
    if form.tokens == 1:
        del signature["tokens"]
        constants["tokens"] = 1
    name = f"routed_linear {problem}, {given}, {_said(form)}, {way}, {loads} loads"
    aligned = ("x", "weight", "bias", "times", "z", "x_row", "z_row", *(["z_piece"] if split else []))
    return Variant(_routed_linear_kernel, name, signature, constants, form.warps, form.stages, aligned)


def _said(form: Form) -> str:
    return f"{form.tokens} x {form.rows} x {form.depth}"


def _routed_mlp() -> Iterator[Variant]:
    for dtype in ("fp32", "bf16", "fp16"):
        for outputs in (16, 64):
            for gated in (False, True):
                signature = dict.fromkeys(
                    ("x", "up", "gate", "down", "up_bias", "gate_bias", "down_bias", "y"), f"*{dtype}"
                )
                signature |= {"inputs": "*i32", "outputs": "*i32", "blocks": "*i64", "tokens": "i32"}
                signature |= {"x_row": "i64", "y_row": "i64"}
                constants = {
                    "x_column": 1, "HAS_UP_BIAS": True, "GATED": gated, "HAS_GATE_BIAS": gated,
                    "HAS_DOWN_BIAS": True, "ACTIVATION": "silu" if gated else "gelu", "WIDEN": False,
                    "PRECISION": "ieee", "TOKENS": routed_mlp_triton.TOKENS,
                    "HIDDEN": routed_mlp_triton.HIDDEN, "OUTPUTS": outputs,
                    "DEPTH": routed_mlp_triton.DEPTH,
                }  # fmt: skip
                name = f"routed_mlp {dtype}, {outputs} outputs a block" + (", gate" if gated else "")
                kernel, warps = routed_mlp_triton._routed_mlp_kernel, routed_mlp_triton.WARPS
                yield Variant(kernel, name, signature, constants, warps, 3, ("x", "y", "x_row", "y_row"))


def _routed_weights() -> Iterator[Variant]:
    kernel = routed_gradients_triton._routed_weights_kernel
    for given in ("fp32", "fp32 as tf32", "bf16", "fp16"):
        dtype, _, precision = given.partition(" as ")
        signature = {
            "grad": f"*{dtype}", "x": f"*{dtype}", "outputs": "*i32", "inputs": "*i32",
            "result": f"*{dtype}", "tiles": "*i64", "tokens": "i32", "grad_row": "i64", "x_row": "i64",
        }  # fmt: skip
        constants = {
            "grad_column": 1, "x_column": 1, "WIDEN": False, "PRECISION": precision or "ieee",
            "SIDE": routed_gradients_triton.SIDE, "TOKENS": routed_gradients_triton.TOKENS,
        }  # fmt: skip
        warps, stages = routed_gradients_triton.WARPS, routed_gradients_triton.STAGES
        aligned = ("grad", "x", "result", "grad_row", "x_row")
        yield Variant(kernel, f"routed_weights, {given}", signature, constants, warps, stages, aligned)

"""What a layer takes on an H100 at least, from its datasheet: written down before anything was measured.

A layer of density p and T tokens multiplies 2 p I O T FLOPs and moves 2 (p I O + T I + T O) bytes in bfloat16
(weights, x and result, once each), and 4 more for each index that a sub-operator of 256 outputs reads.
It takes at least the longer of the two at the ceilings below, and a launch, below which nothing is timed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["predictions"]

FLOPS, BYTES, LAUNCH = 989.4e12, 3.35e12, 3e-6
SHAPES = ((1024, 4096), (4096, 1024), (2048, 8192), (4096, 14336), (8192, 28672), (28672, 8192))
TOKENS = (1, 16, 512, 4096)
DENSITIES = (1.0, 0.5, 0.3, 0.25, 0.1, 0.0625)
# What the kernel is expected to reach of the bound: a guess, to be held against what is measured.
EXPECTED = {"memory": 0.80, "compute": 0.60}
_ROWS = 256


def predictions() -> dict[str, Any]:
    """The ceilings, with where they are from, and a row for each shape, number of tokens and density."""
    return {
        "ceilings": {
            "device": "NVIDIA H100 SXM5 80 GB, from its datasheet and not measured",
            "bf16_dense_flops_per_second": FLOPS,
            "memory_bytes_per_second": BYTES,
            "launch_seconds": LAUNCH,
            "expected_share_of_bound": EXPECTED,
        },
        "rows": [
            _row(inputs, outputs, tokens, density)
            for inputs, outputs in SHAPES
            for tokens in TOKENS
            for density in DENSITIES
        ],
    }


def _row(inputs: int, outputs: int, tokens: int, density: float) -> dict[str, Any]:
    multiply, move = _bounds(inputs, outputs, tokens, density)
    dense = max(_bounds(inputs, outputs, tokens, 1.0))
    bound = max(multiply, move)
    limit = "compute" if multiply > move else "memory"
    return {
        "inputs": inputs,
        "outputs": outputs,
        "tokens": tokens,
        "density": density,
        "limited_by": limit if bound > LAUNCH else f"launch, then {limit}",
        "bound_seconds": bound,
        "expected_seconds": max(bound / EXPECTED[limit], LAUNCH),
        "bound_of_speed_over_dense": max(dense, LAUNCH) / max(bound, LAUNCH),
        "share_of_one_over_density": density * max(dense, LAUNCH) / max(bound, LAUNCH),
    }


def _bounds(inputs: int, outputs: int, tokens: int, density: float) -> tuple[float, float]:
    weights = density * inputs * outputs
    indices = 4 * density * inputs * outputs / _ROWS if density < 1 else 0
    return 2 * weights * tokens / FLOPS, (2 * (weights + tokens * (inputs + outputs)) + indices) / BYTES

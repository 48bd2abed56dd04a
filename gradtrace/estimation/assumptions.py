"""What an estimate rests on, in words, and how far its times are to be trusted."""

from __future__ import annotations

import torch

from gradtrace.estimation.traffic import Traffic

__all__ = ["ERROR", "assumptions"]

ERROR = 0.2
"""Predicted times are taken to be within this share of measured ones; `benchmarks/estimate.py` checks it."""


def assumptions(
    by: str,
    granularity: str,
    tokens: int,
    example: object,
    validate: object,
    examples: int | None,
    inputs: object,
    traffic: Traffic | None,
) -> tuple[str, ...]:
    """One sentence each, for people."""
    lines = [
        f"What is dropped is chosen by {by}, {granularity} at once, the same share in every linear layer.",
        f"Products are predicted by a cost model measured on this device, for {tokens:,} rows of input and "
        f"{torch.get_num_threads()} threads; predictions are taken to be within {ERROR:.0%}.",
        "All else in a call was measured in the dense model, and stays as it is."
        if example is not None
        else "Only linear layers are counted: attention, norms, activations and loading are left out.",
        "No recovery training"
        + (", but what is kept is refitted by least squares." if inputs is not None else "."),
    ]
    if validate is None:
        lines.append("Quality is not estimated: it takes a validate function.")
    elif examples is None:
        lines.append("Quality is that of the examples validated on; how far others differ is not known.")
    else:
        lines.append(f"Quality is a share of {examples:,} independent examples (95%, Wilson).")
    if traffic is not None:
        lines.append(
            f"{traffic.items_per_second:g} items a second all year, {traffic.price_per_hour:g} an hour for a "
            "machine like this, which is paid for only while it computes."
        )
    return tuple(lines)

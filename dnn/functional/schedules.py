"""Schedules: factors of a setting as expressions of the progress.

e counts epochs, with fractions, from 0 at the first update on; t = e / E is the progress from 0 to 1. Both are numbers
of the step: they promote as Python's do.
"""

from __future__ import annotations

import math
from typing import Any

_ROUNDING = 1e-9
"""How much below its beginning an epoch begins: e may be rounded, as 49 · (1 / 49) is."""


def step_decay(xp: Any, epoch: Any, every: float, gamma: float) -> Any:
    """γ^⌊e / n⌋, with n epochs from one step to the next."""
    return gamma ** xp.floor(epoch / every + _ROUNDING)


def exponential_decay(xp: Any, epoch: Any, rate: float) -> Any:
    """r^e."""
    return rate**epoch


def inverse_time_decay(xp: Any, epoch: Any, rate: float) -> Any:
    """1 / (1 + r e): Robbins and Monro 1951."""
    return 1 / (1 + rate * epoch)


def polynomial_decay(xp: Any, t: Any, end: float, power: float) -> Any:
    """η + (1 − η) (1 − t)ᵖ."""
    return end + (1 - end) * (1 - t) ** power


def half_cosine(xp: Any, t: Any, start: float, end: float) -> Any:
    """η + (s − η) (1 + cos π t) / 2: from s at 0 to η at 1. Loshchilov and Hutter 2017, equation (5)."""
    return end + (start - end) * (0.5 * (1 + xp.cos(math.pi * t)))


def warm_restarts(xp: Any, epoch: Any, epochs: float, end: float, cycles: int, cycle_factor: float) -> Any:
    """`half_cosine` from 1 to η in each of so many cycles, each `cycle_factor` times as long as the last.

    Loshchilov and Hutter 2017, equation (5): Tᵢ₊₁ = Tᵢ T_mult, and all cycles together are E epochs.
    """
    shares = [cycle_factor**k for k in range(cycles)]
    unit = epochs / sum(shares)
    start, length = 0.0, shares[0] * unit
    for k in range(1, cycles):
        begins = unit * sum(shares[:k])
        start = xp.where(epoch >= begins - _ROUNDING, begins, start)
        length = xp.where(epoch >= begins - _ROUNDING, unit * shares[k], length)
    return half_cosine(xp, xp.minimum((epoch - start) / length, 1.0), 1.0, end)


def one_cycle(xp: Any, t: Any, warmup: float, start: float, end: float) -> Any:
    """`half_cosine` up from s to 1 until t = w, then down to η: Smith and Topin 2019, with PyTorch's cosines."""
    up = half_cosine(xp, t / warmup, start, 1.0) if warmup > 0 else 1.0
    down = half_cosine(xp, (t - warmup) / (1 - warmup), 1.0, end) if warmup < 1 else 1.0
    return xp.where(t < warmup, up, down)


def flat_cosine(xp: Any, t: Any, flat: float) -> Any:
    """1 until t = f, then `half_cosine` down to 0."""
    return half_cosine(xp, xp.maximum(t - flat, 0.0) / (1 - flat), 1.0, 0.0)


def log_cosine(xp: Any, t: Any, cycles: int) -> Any:
    """(1 − cos(2π log₂(1 + (2ᶜ − 1) t))) / 2: c cycles, each twice as long as the last. Holzmüller et al. 2024."""
    return 0.5 * (1 - xp.cos(2 * math.pi / math.log(2) * xp.log(1 + (2**cycles - 1) * t)))

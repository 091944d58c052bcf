"""Mixed precision: the loss scale, by which gradients are multiplied so that small ones are not lost in float16.

Micikevicius et al. 2018, section 3; the scale is found as PyTorch's GradScaler finds it.
"""

from __future__ import annotations

from typing import Any

from dnn.backends import Array

LOSS_SCALE_BOUNDS = 1.0, 2.0**24
"""With a loss that is not finite, or gradients that are all zero, the scale would run away."""


def next_loss_scale(xp: Any, loss_scale: Array, good_steps: Array, finite: Array, interval: int) -> tuple[Array, Array]:
    """S and the count of good steps, after a step whose gradients were all finite or not. Each (1,).

    S ← 2 S after `interval` finite steps in a row, S ← S / 2 after one that is not; either starts the count again.
    """
    lowest, highest = LOSS_SCALE_BOUNDS
    good_steps = xp.where(finite, good_steps + 1, 0)
    full = good_steps >= interval
    loss_scale = loss_scale * xp.where(finite, xp.where(full, 2.0, 1.0), 0.5).astype(loss_scale.dtype)
    return xp.minimum(xp.maximum(loss_scale, lowest), highest), xp.where(full, 0, good_steps)

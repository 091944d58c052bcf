"""What is measured of a batch, on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from dnn.backends import Array


def mean_loss(xp: Any, losses: Array) -> Array:
    """The mean of all losses, in float64. Each is divided first: the sum cannot overflow where the mean does not."""
    return xp.sum(losses.astype(np.float64) * (1 / losses.size))


def correct_labels(xp: Any, P: Array, Y: Array) -> Array:
    """Where P (m, K) is on the same side of 1/2 as Y; 1/2 itself counts as below."""
    return (P > 0.5) == (Y > 0.5)


def correct_classes(xp: Any, P: Array, labels: Array) -> Array:
    """Where the first of a row's largest entries is at the label. P (m, K), labels (m, 1)."""
    return xp.argmax(P, axis=1, keepdims=True) == labels

"""Losses by name: what is minimised, as a function of the logits."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from dnn.backends import Array
from dnn.functional.losses import LOSSES

__all__ = ["LOSSES", "Loss", "checked_loss", "register_loss"]


@runtime_checkable
class Loss(Protocol):
    """What a loss is; a class with these two methods is one. Both are written in `xp`.

    Z (m, K) are the logits, the output layer's affine map. Y is (m, K): the targets, or the classes one-hot as bool.
    """

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        """One loss an example (m, 1), or one an output (m, K). The training loss is the mean of them all."""

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        """The derivative of the sum of the losses by Z, (m, K)."""


def register_loss(name: str, loss: Loss) -> None:
    """Add a loss under a name that networks then take, model files included."""
    LOSSES[name] = checked_loss(loss)


def checked_loss(loss: Any) -> Loss:
    """The loss, by name or as it is; ValueError or TypeError where it is none."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            names = ", ".join(LOSSES)
            raise ValueError(f"loss must be one of {names}, or an object with losses and gradient; got {loss!r}")
        found: Loss = LOSSES[loss]
        return found
    if isinstance(loss, type) or not isinstance(loss, Loss):
        raise TypeError(f"loss must be a name or an object with the methods losses and gradient, got {loss!r}")
    return loss

"""What a training step computes in, where that is not its network's dtype.

tf32       in float32, but the products round what they multiply to TF32's 10 bits after the point
bfloat16   on copies of the float32 parameters in bfloat16, see `Mixed`
float16    likewise, its gradients scaled, see `Scaled`

Predictions and evaluations stay in the network's dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dnn import functional
from dnn.backends import Array
from dnn.optimizers import Update
from dnn.parameters import Parameters

if TYPE_CHECKING:
    from dnn.network import Network

PRECISIONS = ("float32", "float64", "tf32", "float16", "bfloat16")


def check_precision(network: Network, precision: Any) -> str | None:
    """`precision` where a step of this network can compute in it, None where that is the network's own dtype.

    ValueError where it cannot.
    """
    own, backend = network.dtype.name, network.backend
    if precision is None or precision == own:
        return None
    if precision in PRECISIONS and own != "float32":
        raise ValueError(
            f"precision {precision} needs a float32 network, this one is {own}: make it with dtype float32"
        )
    if not (isinstance(precision, str) and precision in backend.precisions):
        raise ValueError(
            f"precision must be one of {', '.join([own, *backend.precisions])} on the backend {backend.name}, "
            f"got {precision!r}: leave it out, or take a backend that has it (dnn doctor lists them)"
        )
    return precision


class Mixed:
    """The copies of a network's float32 parameters that a step in 16 bits works on, and its gradients.

    Forward, backward and their products are in 16 bits, with sums in float32. The logits are cast up: loss and dZ of
    the output are float32, and so are the gradients that the update takes, and θ (Micikevicius et al. 2018, section 3).
    """

    def __init__(self, precision: str, parameters: Parameters) -> None:
        backend = parameters.backend
        self.precision = precision
        self._master = parameters
        self.parameters, self.gradients = (parameters.like(backend.precisions[precision]) for _ in range(2))
        self._xp: Any = backend.xp
        self._cast = backend.fused(functional.cast)

    def take_weights(self) -> None:
        """The copies from the master parameters."""
        self._cast(self._xp, self._master.flat, out=self.parameters.flat)

    def raise_logits(self, Z: Array, *, out: Array) -> None:
        self._cast(self._xp, Z, out=out)

    def lower_gradient(self, dZ: Array, *, out: Array) -> None:
        """The output's dZ in 16 bits. dZ may hold anything afterwards."""
        self._cast(self._xp, dZ, out=out)

    def update(self, update: Update) -> None:
        """`update` with the gradients that the backward pass left here."""
        self._cast(self._xp, self.gradients.flat, out=update.gradients.flat)
        update()


class Scaled(Mixed):
    """In float16, whose smallest numbers are too large for many a gradient: dZ is scaled, and with it all gradients.

    The scale is found on the device: halved after a step with a gradient that is not finite, which then leaves the
    parameters and the optimizer's state to the bit as they were, and doubled after INTERVAL finite ones in a row
    (PyTorch's GradScaler, with its constants).
    """

    START, INTERVAL = 2.0**16, 2000

    def __init__(self, precision: str, parameters: Parameters) -> None:
        super().__init__(precision, parameters)
        backend = parameters.backend
        self.loss_scale = backend.asarray(np.array([self.START], parameters.dtype))
        self.good = backend.zeros(1, np.int64)
        self._finite = backend.asarray(np.ones(1, np.int64))
        self._exponent = backend.zeros(1, np.int64)
        self._extreme = backend.zeros(1, self.gradients.dtype)
        self._is_finite = backend.zeros(1, np.bool_)
        self._scaled_cast = backend.fused(functional.scaled_cast)
        self._find_overflow = backend.fused(functional.find_overflow)
        self._unscale = backend.fused(functional.unscale)
        self._loss_scaling = backend.fused(functional.loss_scaling)

    def lower_gradient(self, dZ: Array, *, out: Array) -> None:
        self._scaled_cast(self._xp, dZ, self.loss_scale, out=out, scratch=dZ)

    def update(self, update: Update) -> None:
        xp, scaled = self._xp, self.gradients.flat
        self._find_overflow(xp, scaled, finite=self._finite, extreme=self._extreme, is_finite=self._is_finite)
        self._unscale(xp, scaled, self.loss_scale, self._finite, out=update.gradients.flat)
        update.take_factors(self._finite)
        update()
        self._loss_scaling(
            xp,
            self.INTERVAL,
            loss_scale=self.loss_scale,
            good=self.good,
            finite=self._finite,
            exponent=self._exponent,
        )


def working_copies(precision: str | None, parameters: Parameters, before: Mixed | None = None) -> Mixed | None:
    """What a step in this precision works on: `before` where that is it. None where it needs no copies."""
    if precision is None or parameters.backend.precisions[precision] == parameters.dtype:
        return None
    if before is not None and before.precision == precision:
        return before
    return (Scaled if precision == "float16" else Mixed)(precision, parameters)

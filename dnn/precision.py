"""What a training step computes in, where that is not its network's dtype.

tf32       in float32, but products round what they multiply to TF32's 10 bits of mantissa
bfloat16   forward and backward in bfloat16, on copies of the float32 parameters
float16    likewise, with scaled gradients: the loss scale is halved after a step with a gradient that is not finite,
           which then changes neither the parameters nor the optimizer's state, and doubled after INTERVAL good steps

Logits, loss and update are float32 (Micikevicius et al. 2018, section 3). Predictions and evaluations stay in the
network's dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dnn.backends import Backend

PRECISIONS = ("float32", "float64", "tf32", "float16", "bfloat16")
INITIAL_LOSS_SCALE, INTERVAL = 2.0**16, 2000
"""PyTorch's GradScaler's."""


def check_precision(dtype: np.dtype, backend: Backend, precision: Any) -> str | None:
    """`precision` where a network of this dtype can train in it, None where that is its own dtype; else ValueError."""
    own = dtype.name
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


def compute_dtype(dtype: np.dtype, backend: Backend, precision: str | None) -> np.dtype:
    """The dtype of activations and gradients."""
    return backend.precisions[precision] if precision else dtype

"""The mathematics, once, in `xp`.

Pure functions of arrays: the array module first, then values in, values out. Called with NumPy's or CuPy's arrays they
compute at once; called while a plan is built they become part of it, and fast code is derived from them. So they write
nothing in place, and choose by `xp.where`, not by `if`.

Shapes: m examples, one a row; a layer of n_in inputs and n_out units; K outputs. exp and products may overflow to the
infinity that gives the right limit; callers silence NumPy's warning.
"""

from __future__ import annotations

from dnn.functional.activations import *  # noqa: F403
from dnn.functional.batches import *  # noqa: F403
from dnn.functional.linear import *  # noqa: F403
from dnn.functional.losses import *  # noqa: F403
from dnn.functional.metrics import *  # noqa: F403
from dnn.functional.precision import *  # noqa: F403
from dnn.functional.special import *  # noqa: F403

__all__ = [name for name, value in globals().items() if getattr(value, "__module__", "").startswith("dnn.functional.")]

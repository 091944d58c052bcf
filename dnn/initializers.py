"""Initial weights, drawn on the host in float64, so that a seed gives the same bits on every backend. Biases are zero.

W (n_out, n_in), from untruncated distributions. With n_in inputs and n_out units:

    he_*         variance 2 / n_in              He et al. 2015, equation (10)
    glorot_*     variance 2 / (n_in + n_out)    Glorot and Bengio 2010, equation (16)
    lecun_*      variance 1 / n_in              LeCun et al. 1998, section 4.6
    *_uniform    on [−l, l) with l = √(3 variance)
    orthogonal   orthonormal rows, or columns where there are more rows than columns    Saxe et al. 2013
    zeros        0
    a number     that number for every weight

and the assignment's two, which draw the layers in order from the legacy generator `numpy.random.RandomState(seed)`:

    course_small   randn · 0.01        course_scaled   randn / √n_in

The last bits of `orthogonal` are also those of the LAPACK that NumPy uses; the others are the same on every machine.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dnn.errors import nearest

Generator = np.random.Generator | np.random.RandomState

_VARIANCES = {
    "he": lambda n_in, n_out: 2 / n_in,
    "glorot": lambda n_in, n_out: 2 / (n_in + n_out),
    "lecun": lambda n_in, n_out: 1 / n_in,
}
COURSE = {
    "course_small": lambda draw, n_in: draw * 0.01,
    # divided by √n_in, not multiplied by its inverse: the published costs depend on the last bit
    "course_scaled": lambda draw, n_in: draw / np.sqrt(n_in),
}
"""Those that draw all layers from one `RandomState(seed)`, in order."""

INITIALIZERS = (
    *(f"{name}_{law}" for name in _VARIANCES for law in ("normal", "uniform")),
    "orthogonal",
    "zeros",
    *COURSE,
)


def check_initializer(initializer: Any) -> None:
    """ValueError unless it is one of INITIALIZERS or a finite number; the message names the name that is nearest."""
    if isinstance(initializer, int | float | np.integer | np.floating) and not isinstance(initializer, bool):
        with contextlib.suppress(OverflowError):  # a whole number beyond float64
            if math.isfinite(initializer):
                return
        raise ValueError(f"initializer must be finite where it is a number, got {initializer!r}")
    if isinstance(initializer, str) and initializer in INITIALIZERS:
        return
    near = nearest(initializer, INITIALIZERS)
    hint = f": did you mean {near}?" if near else ""
    raise ValueError(
        f"initializer must be one of {', '.join(INITIALIZERS)} or a finite number, got {initializer!r}{hint}"
    )


def initial_weights(initializer: str | float, layer_sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """[W1, ..., WL] in float64. Layer l draws from PCG64(SeedSequence([seed, 0, l])), independently of the others."""
    shapes = [(n_out, n_in) for n_in, n_out in itertools.pairwise(layer_sizes)]
    generators: list[Generator]
    if initializer in COURSE:
        generators = [np.random.RandomState(seed)] * len(shapes)
    else:
        generators = [
            np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0, layer])))
            for layer in range(1, len(shapes) + 1)
        ]
    return [weights(initializer, shape, generator) for shape, generator in zip(shapes, generators, strict=True)]


def weights(initializer: str | float, shape: tuple[int, int], generator: Generator) -> np.ndarray:
    """One matrix (n_out, n_in) in float64, drawn from the generator; a constant takes nothing from it."""
    check_initializer(initializer)
    n_out, n_in = shape
    if not isinstance(initializer, str):
        return np.full(shape, initializer, np.float64)
    if initializer == "zeros":
        return np.zeros(shape)
    if initializer == "orthogonal":
        return _orthogonal(generator.standard_normal(shape))
    if initializer in COURSE:
        return COURSE[initializer](generator.standard_normal(shape), n_in)
    name, law = initializer.split("_")
    deviation = np.sqrt(_VARIANCES[name](n_in, n_out))
    if law == "normal":
        return generator.standard_normal(shape) * deviation
    return generator.uniform(-1, 1, shape) * (np.sqrt(3) * deviation)


def _orthogonal(normal: np.ndarray) -> np.ndarray:
    """Q of normal = Q R, or of its transpose where it is wider than high.

    QR leaves the signs of R's diagonal to the library. Made positive, Q is unique, and distributed uniformly over the
    orthogonal matrices (Mezzadri 2007).
    """
    n_out, n_in = normal.shape
    Q, R = np.linalg.qr(normal if n_out >= n_in else normal.T)
    Q = Q * np.where(np.diagonal(R) < 0, -1.0, 1.0)
    return np.ascontiguousarray(Q if n_out >= n_in else Q.T)

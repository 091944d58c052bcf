"""Initial weights, drawn on the host in float64, so that a seed gives the same bits on every backend. Biases are zero.

W (n_out, n_in), from untruncated distributions. With n_in inputs and n_out units:

    he_*      variance 2 / n_in              He et al. 2015, equation (10)
    glorot_*  variance 2 / (n_in + n_out)    Glorot and Bengio 2010, equation (16)
    lecun_*   variance 1 / n_in              LeCun et al. 1998, section 4.6
    *_uniform on [−l, l) with l = √(3 variance)

and the assignment's two, which draw the layers in order from the legacy generator `numpy.random.RandomState(seed)`:

    course_small   randn · 0.01        course_scaled   randn / √n_in
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

_VARIANCES = {
    "he": lambda n_in, n_out: 2 / n_in,
    "glorot": lambda n_in, n_out: 2 / (n_in + n_out),
    "lecun": lambda n_in, n_out: 1 / n_in,
}
# divided by √n_in, not multiplied by its inverse: the published costs depend on the last bit
_COURSE = {
    "course_small": lambda draw, n_in: draw * 0.01,
    "course_scaled": lambda draw, n_in: draw / np.sqrt(n_in),
}

INITIALIZERS = (*(f"{name}_{law}" for name in _VARIANCES for law in ("normal", "uniform")), *_COURSE)


def initial_weights(initializer: str, layer_sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """[W1, ..., WL] in float64. Layer l draws from PCG64(SeedSequence([seed, 0, l])), independently of the others."""
    shapes = [(n_out, n_in) for n_in, n_out in itertools.pairwise(layer_sizes)]
    if initializer in _COURSE:
        legacy, scaled = np.random.RandomState(seed), _COURSE[initializer]
        return [scaled(legacy.randn(*shape), shape[1]) for shape in shapes]
    name, law = initializer.split("_")
    weights = []
    for layer, (n_out, n_in) in enumerate(shapes, start=1):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0, layer])))
        deviation = np.sqrt(_VARIANCES[name](n_in, n_out))
        if law == "normal":
            weights.append(generator.standard_normal((n_out, n_in)) * deviation)
        else:
            weights.append(generator.uniform(-1, 1, (n_out, n_in)) * (np.sqrt(3) * deviation))
    return weights

"""Special functions that NumPy does not have, as pure functions in `xp`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dnn.backends import Array


def _polynomial(x: Array, terms: tuple[float, ...]) -> Array:
    """Horner's rule, the lowest coefficient first."""
    y = x * terms[-1] + terms[-2]
    for term in terms[-3::-1]:
        y = y * x + term
    return y


# minimax fits (Remez) of this project: erf(x)/x - 1 in x**2 below the split, log(erfc(x))/x + 1 in x above it
_FLOAT32_SPLIT = 0.6
_FLOAT32_SMALL = (0.12837915, -0.37612444, 0.112799294, -0.026595458, 0.004435599)
_FLOAT32_LARGE = (-0.12850681, -0.6357697, -0.10515201, 0.022786854, -0.0031706747, 0.0002068915)
_FLOAT64_SPLIT = 0.7
_FLOAT64_SMALL = (
    0.12837916709551256,
    -0.37612638903182966,
    0.1128379167090248,
    -0.02686617063145671,
    0.005223977444646386,
    -0.0008548313259592749,
    0.0001205469308278548,
    -1.4907151389897037e-05,
    1.6136159707526273e-06,
    -1.3121033713538556e-07,
)
_FLOAT64_LARGE = (
    -0.12837918127864126,
    -0.6366195833497874,
    -0.10277377913343755,
    0.01913298631689498,
    0.00019699959842522328,
    -0.0016719776632617112,
    0.0005532116839817014,
    1.8228125955951248e-05,
    -0.00010635841605524967,
    6.143469624572493e-05,
    -2.24608494451924e-05,
    6.031010369636196e-06,
    -1.2310320292113195e-06,
    1.9043925075834712e-07,
    -2.172542753816522e-08,
    1.727237045370706e-09,
    -8.550829045101513e-11,
    1.984177438875679e-12,
)


def erf(xp: Any, x: Array) -> Array:
    """The error function, 2/sqrt(pi) times the integral of exp(-t**2) from 0 to x. float32 and float64, below 1.7 ulp.

    A polynomial times x near 0; elsewhere 1 - exp(p(x)), where a polynomial p approximates log(erfc(x)): erfc falls so
    fast that p need be close only at its low end. Beyond 4 (float64: 6), erf is 1 to the last bit.
    """
    if x.dtype.itemsize < 4:  # 16 bits hold neither the coefficients nor the powers
        return erf(xp, x.astype(np.float32)).astype(x.dtype)
    small: tuple[float, ...]
    large: tuple[float, ...]
    if x.dtype == np.float32:
        limit, split, small, large = 4.0, _FLOAT32_SPLIT, _FLOAT32_SMALL, _FLOAT32_LARGE
    else:
        limit, split, small, large = 6.0, _FLOAT64_SPLIT, _FLOAT64_SMALL, _FLOAT64_LARGE
    size = xp.absolute(x)
    size = xp.where(size > limit, limit, size)
    near = size + size * _polynomial(size * size, small)
    far = 1.0 - xp.exp(size * _polynomial(size, large) - size)
    return xp.copysign(xp.where(size < split, near, far), x)

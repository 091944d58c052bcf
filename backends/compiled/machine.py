"""What compiled code needs of the machine beneath: the BLAS's own product, and where to find what is called."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import numpy as np

GEMM_NAMES = ("scipy_cblas_{}gemm64_", "cblas_{}gemm64_")
"""The product with 64-bit sizes, in NumPy's wheels and in a plain OpenBLAS or MKL of that width."""


def gemm_address(dtype: Any) -> int | None:
    """Where the gemm of NumPy's own BLAS stands in memory, None where it has none of a known form."""
    letter = {"f": "s", "d": "d"}[np.dtype(dtype).char]
    try:
        # the libraries that an extension module brings are searched with it
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        return None
    for name in GEMM_NAMES:
        try:
            return ctypes.cast(getattr(library, name.format(letter)), ctypes.c_void_p).value
        except AttributeError:
            continue
    return None


def waiting_addresses() -> tuple[int, int] | None:
    """sched_yield and usleep of the C library, None where there is none."""
    try:
        library = ctypes.CDLL(None)
        yielding, sleeping = (
            ctypes.cast(getattr(library, name), ctypes.c_void_p) for name in ("sched_yield", "usleep")
        )
    except (OSError, AttributeError, TypeError):
        return None
    assert yielding.value is not None and sleeping.value is not None
    return yielding.value, sleeping.value


IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

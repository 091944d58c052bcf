"""What compiled code needs of the machine beneath: the BLAS's own product, and where to find what is called."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

GEMM_NAMES = ("scipy_cblas_{}gemm64_", "cblas_{}gemm64_")
"""The product with 64-bit sizes, in NumPy's wheels and in a plain OpenBLAS or MKL of that width."""


THREADS_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_")
"""How many threads it has: get and set."""


def _of_blas(names: tuple[str, ...], letter: str) -> Any:
    """The first of these functions that NumPy's own BLAS has, or None."""
    try:
        # the libraries that an extension module brings are searched with it
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        return None
    return next((found for name in names if (found := getattr(library, name.format(letter), None))), None)


@cache
def gemm_address(dtype: Any) -> int | None:
    """Where the gemm of NumPy's own BLAS stands in memory, None where it has none of a known form."""
    gemm = _of_blas(GEMM_NAMES, {"f": "s", "d": "d"}[np.dtype(dtype).char])
    return None if gemm is None else ctypes.cast(gemm, ctypes.c_void_p).value


@cache
def blas_threads() -> list[tuple[Callable[[], int], Callable[[int], Any]]]:
    """(how many threads it has, sets them) of NumPy's own BLAS; of a BLAS of another form, what threadpoolctl has."""
    get, set_ = _of_blas(THREADS_NAMES, "get"), _of_blas(THREADS_NAMES, "set")
    if get is not None and set_ is not None:
        # not by threadpoolctl: there only the thread that first set them may
        return [(get, set_)]
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return [(library.get_num_threads, library.set_num_threads) for library in found]


@cache
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

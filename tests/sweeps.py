"""Sweeps over all combinations of a test's parameters: a few that cover every value by default, the rest as `slow`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def covering(names: str, *values: Iterable[Any], times: int = 1, **settings: Any) -> pytest.MarkDecorator:
    """Parametrizes by all combinations of `values`; those not needed to meet every value `times` times are slow.

    Each time the lists are gone through at another offset from each other, so that what meets is not always the same.
    On CuPy none is slow, also where the backends are left to their fixture (see conftest): where there is a card, it is
    tested in full.
    """
    lists = [[value for value in each if not is_cupy(value)] for each in values]
    chosen = {
        tuple((i + turn * place) % len(each) for place, each in enumerate(lists))
        for i in range(max(map(len, lists)))
        for turn in range(times)
    }
    cases = []
    for indices in product(*(range(len(each)) for each in lists)):
        case = [each[index] for index, each in zip(indices, lists, strict=True)]
        cases.append(pytest.param(*case, marks=() if indices in chosen else pytest.mark.slow(sweep=True)))
    cases += [pytest.param(*case) for case in product(*values) if any(map(is_cupy, case))]
    return pytest.mark.parametrize(names, cases, **settings)


def is_cupy(value: Any) -> bool:
    return isinstance(value, str) and value == "cupy"

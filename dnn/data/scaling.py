"""The scales that a network learns from the data of its first fit, in float64.

standard   (x − mean) / standard deviation of the population; of a constant feature the deviation counts as 1
robust     (x − median) / (q75 − q25), or where these are equal / (max − min)/2, then x / sqrt(1 + (x/3)²), which is
           never beyond ±3; a constant feature is 0 whatever it is later (Holzmüller, Grinsztajn and Steinwart 2024)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn.backends import Array, Backend
from dnn.losses import GaussianNLL, outputs_per_target
from dnn.network import Network

CLIP = 3.0
FAR = 1e100
"""Beyond, an input counts as this: its square is finite."""
PASSES = 16
"""Quantiles need all of a feature: this share of the features is in memory at a time."""

Blocks = Callable[[], Iterator[np.ndarray]]
"""Gives the rows to learn from, in blocks (m, n) in float64, as often as it is called."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """x ← (x − shift) / factor of each feature, clipped smoothly if `clips`; codes of categories stay as they are."""

    shift: np.ndarray
    factor: np.ndarray
    clips: bool
    codes: tuple[int, ...] = ()

    def __call__(self, backend: Backend, X: Array) -> Array:
        """X (m, n), on the backend's device or on the host, in float64."""
        xp: Any = np if isinstance(X, np.ndarray) else backend.xp
        is_code = np.zeros(len(self.shift), bool)
        is_code[list(self.codes)] = True
        shift, factor, is_code = (
            of_features if xp is np else backend.asarray(of_features)
            for of_features in (self.shift, self.factor, is_code)
        )
        given = X.astype(np.float64)
        X = (given - shift) / factor
        if self.clips:
            X = xp.minimum(xp.maximum(X, -FAR), FAR)
            X = X / xp.sqrt(1 + (X / CLIP) * (X / CLIP))
        return xp.where(is_code, given, X) if self.codes else X


def input_scaling(network: Network, statistics: dict[str, np.ndarray]) -> Scaling:
    clips = network.input_scale == "robust"
    return Scaling(statistics["input_shift"], statistics["input_factor"], clips, network.code_columns)


def standard(blocks: Blocks, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each feature, in one pass; nan of one too large for float64.

    Of every block the mean and the sum of the squares about it, joined as in Chan, Golub and LeVeque 1979.
    """
    count, mean, squares = 0, np.zeros(n), np.zeros(n)
    lowest, highest = np.full(n, np.inf), np.full(n, -np.inf)
    for block in blocks():
        m = len(block)
        if not m:
            continue
        center = block.mean(axis=0)
        center += (block - center).mean(axis=0)  # what rounding left
        apart = center - mean
        squares += ((block - center) ** 2).sum(axis=0) + apart**2 * (count * m / (count + m))
        mean += apart * (m / (count + m))
        count += m
        lowest, highest = np.minimum(lowest, block.min(axis=0)), np.maximum(highest, block.max(axis=0))
    deviation = np.sqrt(squares / count)
    deviation[~np.isfinite(deviation)] = np.nan
    constant = lowest == highest
    return np.where(constant, lowest, mean), np.where(constant | (deviation == 0), 1.0, deviation)


def robust(blocks: Blocks, n: int, m: int, at_once: int) -> tuple[np.ndarray, np.ndarray]:
    """The median and the interquartile range of each feature, or what is in its place: inf of a constant one.

    With no more than `at_once` numbers in memory, or a few features. nan of one too large for float64.
    """
    shift, factor = np.empty(n), np.empty(n)
    size = max(-(-n // PASSES), at_once // m)
    for first in range(0, n, size):
        features = np.empty((min(size, n - first), m))
        start = 0
        for block in blocks():
            features[:, start : start + len(block)] = block[:, first : first + size].T
            start += len(block)
        for j, values in enumerate(features, start=first):
            low, shift[j], high = np.quantile(values, (0.25, 0.5, 0.75))
            spread = high - low or 0.5 * (values.max() - values.min()) or np.inf
            factor[j] = np.nan if spread == np.inf and values.min() < values.max() else spread
    return shift, factor


def of_targets(Y: np.ndarray, known: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each target where it is known; 0 and 1 of one that never is."""
    shift, factor = np.zeros(Y.shape[1]), np.ones(Y.shape[1])
    for k in range(Y.shape[1]):
        values = Y[:, k : k + 1] if known is None else Y[known[:, k] > 0, k : k + 1]
        if len(values):
            (shift[k],), (factor[k],) = standard(lambda values=values: iter([values]), 1)  # type: ignore[misc]
    return shift, factor


def scaled_targets(
    network: Network, statistics: dict[str, np.ndarray], Y: np.ndarray, known: np.ndarray | None
) -> np.ndarray:
    """Y in the units that the network learns in, and in its dtype; 0 where it is not known."""
    Y = (Y - statistics["target_shift"]) / statistics["target_factor"]
    return (Y if known is None else np.where(known > 0, Y, 0)).astype(network.dtype)


def of_answers(network: Network) -> tuple[np.ndarray, np.ndarray] | None:
    """The shift and the factor from the outputs to the units of the targets, in float64; None where they are these."""
    if network.target_scale is None:
        return None
    group = outputs_per_target(network.loss_function)
    shift, factor = (np.repeat(network.statistics[f"target_{name}"], group) for name in ("shift", "factor"))
    if isinstance(network.loss_function, GaussianNLL):  # its variances
        shift[1::2] = 0
        factor[1::2] **= 2
    return shift, factor

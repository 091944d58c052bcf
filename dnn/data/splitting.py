"""The examples that are held out, for validation or as a test part."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from dnn.errors import DataError
from dnn.network import Network

MANY_CLASSES, ENOUGH_EXAMPLES = 20, 5


def split_rows(network: Network, targets: np.ndarray, split: float) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(the rows held out for validation, the rows left to train on), or (None, None) without a split.

    Of classes, each gives its share to within one example; what rounding leaves goes to classes that would have none
    first, then to the largest remainders.
    """
    m = len(targets)
    if not split:
        return None, None
    share = Fraction(str(split))  # the decimal that was meant: 0.07 of 100 is 7
    if share.denominator > 10**15:  # more digits than a decimal keeps: a quotient, such as 5/6
        share = share.limit_denominator(10**6)
    held_out = max(1, math.ceil(share * m))
    if held_out >= m:
        raise DataError(f"validation_split {split:g} of {m} examples leaves none to train on")
    seeds = np.random.SeedSequence([network.seed, 2])
    cut = np.random.Generator(np.random.PCG64(seeds)).permutation(m)
    classes = _classes_to_split(network, targets)
    chosen = cut[:held_out] if classes is None else _stratified(cut, classes, held_out)
    # in the file's order: the permutation selects examples, it does not order them
    kept = np.ones(m, bool)
    kept[chosen] = False
    return np.sort(chosen), np.flatnonzero(kept)


def _classes_to_split(network: Network, targets: np.ndarray) -> np.ndarray | None:
    """The class of every example, where examples have one."""
    if network.output == "softmax":
        return targets[:, 0]
    if network.output == "sigmoid" and targets.shape[1] == 1 and np.isin(targets, (0, 1)).all():
        return targets[:, 0].astype(np.int64)
    return None


def held_out_rows(m: int, labels: np.ndarray | None, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(the rows to train on, the rows of a test part) of m examples, in ascending order.

    Of classes, each gives its share. Labels of more than MANY_CLASSES, with fewer than ENOUGH_EXAMPLES for each on
    average, are taken for values.
    """
    held_out = max(1, math.ceil(Fraction(str(share)) * m))
    if held_out >= m:
        raise DataError(f"a test part of {share:g} of {m} examples leaves none to train on")
    cut = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 3]))).permutation(m)
    chosen = cut[:held_out]
    if labels is not None:
        labels = labels.ravel()
        classes = len(np.unique(labels))
        if classes <= MANY_CLASSES or m >= ENOUGH_EXAMPLES * classes:
            chosen = _stratified(cut, labels, held_out)
    kept = np.ones(m, bool)
    kept[chosen] = False
    return np.flatnonzero(kept), np.sort(chosen)


def shuffled(m: int, rows: np.ndarray | None, seed: int) -> np.ndarray:
    """These of m rows, or all of them, in random order."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 4])))
    return generator.permutation(m if rows is None else rows)


def _stratified(cut: np.ndarray, classes: np.ndarray, held_out: int) -> np.ndarray:
    """`held_out` rows, of each class the first in the order of the cut."""
    _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
    taken, remainder = np.divmod(counts * held_out, len(classes))
    # what is left, by the remainders: first where it makes a class present, last where none were left to train on
    present = (taken > 0).astype(np.int64)
    order = np.lexsort((-remainder, present, taken + 1 >= counts, remainder == 0))
    taken[order[: held_out - taken.sum()]] += 1
    in_order = numbers[cut]
    by_class = np.argsort(in_order, kind="stable")
    rank = np.empty(len(cut), np.int64)
    rank[by_class] = np.arange(len(cut)) - np.repeat(np.cumsum(counts) - counts, counts)
    return cut[rank < taken[in_order]]

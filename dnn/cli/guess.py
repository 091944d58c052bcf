"""Which output the labels of a data file imply, and what of that is a guess."""

from __future__ import annotations

from shlex import quote

import numpy as np

from dnn.data import Dataset, Part
from dnn.data.columns import Table
from dnn.errors import DataError
from dnn.network import Network

MANY_CLASSES, ENOUGH_EXAMPLES = 20, 5
"""Labels of more classes than this, with fewer examples for each on average, are taken for values."""


def known_labels(labels: np.ndarray) -> np.ndarray:
    """The labels but those that are nan; of several columns all."""
    one = labels.ndim == 1 or labels.shape[1:] == (1,)
    return labels[~np.isnan(labels)] if one and labels.dtype.kind == "f" else labels


def output_for(asked: str | None, labels: np.ndarray, data: Dataset) -> tuple[str, int]:
    """The output, and the number of its targets or classes, that these labels imply."""
    if labels.size == 0:
        raise DataError(f"{data.path}: expected at least one label, got an empty set")
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.shape[0] > 1:
        return _output_of_columns(asked, labels)
    whole = bool((np.isfinite(labels) & (np.floor(labels) == labels)).all())
    guessing = asked is None and data.classes is None
    # files written by way of text or a table have their class numbers as floats
    if labels.dtype.kind == "f" and asked != "softmax" and (not whole or (guessing and _doubt(labels))):
        return asked or "linear", 1
    if asked in ("sigmoid", "linear"):
        return asked, 1
    wrong = labels[~np.isfinite(labels) | (labels < 0) | (labels != np.floor(labels))]
    if wrong.size:
        raise DataError(
            f"{data.path}: expected class numbers from 0 up, got {wrong[0]}: number the classes from 0, or use "
            "--output linear for values"
        )
    largest = int(labels.max())
    classes = largest + 1 if data.classes is None else len(data.classes)
    if data.classes is not None and largest >= classes:
        raise DataError(f"{data.path}: label {largest} is out of range: list_classes names {classes} classes")
    if classes < 2:
        name = 0 if data.classes is None else repr(data.classes[0])
        raise DataError(f"{data.path}: all labels are {name}: expected at least two classes")
    if guessing and (doubt := _doubt(labels)):
        raise DataError(
            f"{data.path}: labels {labels.min():g} to {largest} of {len(labels)} examples do not look like class "
            f"numbers ({doubt}): use --output linear for values; number classes from 0 without gaps, or use --output "
            f"softmax for {classes} of them"
        )
    if asked == "softmax" or classes > 2:
        return "softmax", classes
    return "sigmoid", 1


def _doubt(labels: np.ndarray) -> str | None:
    """Why these whole numbers are unlikely to be class numbers, or None."""
    numbers = np.unique(labels)
    if numbers[0] < 0:
        return f"{numbers[0]:g} is among them"
    gaps = numbers != np.arange(len(numbers))
    if gaps.any():
        return f"there is no {gaps.argmax()}"
    classes = len(numbers)
    if classes > MANY_CLASSES and len(labels) < ENOUGH_EXAMPLES * classes:
        return f"{classes} different ones, fewer than {ENOUGH_EXAMPLES} examples of each"
    return None


def guesses(
    asked: str | None, labels: np.ndarray, train: Part, data: Dataset, network: Network, scaled: bool = False
) -> str:
    """What was guessed about the data, in words, with the flags that decide; `scaled`: that targets are to be."""
    guesses, units = [], network.layer_sizes[-1]
    if asked is None and (data.classes is None or network.output == "linear"):
        columns = labels.ndim == 2 and labels.shape[1] > 1 and labels.shape[0] > 1
        if network.output == "linear":
            fix = "--output sigmoid for probabilities" if _are_shares(labels) else "--output softmax for classes"
            if isinstance(train.X, Table) and not columns and _are_few(labels):
                fix = f"--categories {quote(train.X.target[0])} for classes"
            guesses.append(f"the labels are real values; {fix}")
        elif columns and network.output == "sigmoid":
            guesses.append(f"the labels are {units} yes or no each; --output linear for real values")
        elif columns:
            guesses.append(f"the labels are {units} classes, one-hot; --output sigmoid for independent labels")
        else:
            guesses.append(f"the labels are {max(units, 2)} classes; --output linear for real values")
    if network.input_scale is None and train.X.dtype == np.uint8:
        guesses.append("X are pixels, scaled by 1/255; --input-scale 1 for numbers as they are")
    if scaled:
        guesses.append("targets are scaled to mean 0, deviation 1; --target-scale none for values as they are")
    return f" (guessed: {'. '.join(guesses)})" if guesses else ""


def _are_few(labels: np.ndarray) -> bool:
    """Whether these are whole numbers, few of them different."""
    numbers = np.unique(labels[~np.isnan(labels)])
    return 2 <= len(numbers) <= MANY_CLASSES and bool((np.floor(numbers) == numbers).all())


def _are_shares(labels: np.ndarray) -> bool:
    return bool(np.nanmin(labels) >= 0 and np.nanmax(labels) <= 1)


def _output_of_columns(asked: str | None, labels: np.ndarray) -> tuple[str, int]:
    columns = labels.shape[1]
    if asked is not None:
        return asked, columns
    if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
        return "linear", columns
    return ("softmax" if (labels.sum(axis=1) == 1).all() else "sigmoid"), columns

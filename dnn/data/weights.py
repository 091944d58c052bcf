"""How much each example, or each of its targets, counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dnn.backends import backend_of
from dnn.data.examples import Examples
from dnn.data.sources import as_array, is_device_array, read
from dnn.errors import DataError, check_choice, check_finite_number
from dnn.network import Network


def with_weights(
    network: Network,
    examples: Examples,
    sample_weight: Any = None,
    of_classes: np.ndarray | None = None,
    name: str = "sample_weight",
) -> Examples:
    """The examples with the weights of their losses: of the sample, of its class, and 0 where a target is missing.

    The metric counts the first and the last. An example without any keeps none, and its step does not multiply.
    """
    if sample_weight is None and of_classes is None and examples.weights is None:
        return examples
    backend = network.backend
    counted = np.ones((examples.m, 1), network.dtype)
    if examples.weights is not None:  # those of missing targets
        counted = counted * backend.to_numpy(examples.weights)
    if sample_weight is not None:
        counted = counted * _checked(name, sample_weight, examples.m, network.dtype)
    weights = counted if of_classes is None else counted * of_classes.astype(network.dtype)
    return replace(examples, weights=backend.asarray(weights), counted=backend.asarray(counted))


def _checked(name: str, given: Any, m: int, dtype: np.dtype) -> np.ndarray:
    """Weights (m, 1); DataError where there is not one a sample, finite and at least 0."""
    given = as_array(name, given)
    host = backend_of(given).to_numpy(given) if is_device_array(given) else read(name, given, ...)
    if host.shape not in ((m,), (m, 1)):
        raise DataError(f"{name}: expected a weight for each of {m} examples, got shape {tuple(host.shape)}")
    weights = host.reshape(m, 1).astype(np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise DataError(f"{name}: expected finite numbers from 0 up, got {wrong}")
    if not weights.any():
        raise DataError(f"{name}: all weights are 0: there is nothing to learn from")
    with np.errstate(over="ignore"):
        found = weights.astype(dtype)
    if not np.isfinite(found).all():
        raise DataError(f"{name}: {weights.max():g} is not finite in {dtype}")
    return found


def check_some(network: Network, examples: Examples, rows: np.ndarray | None, what: str) -> None:
    """DataError where none of the examples in these rows, None being all, weighs anything."""
    if examples.weights is None:
        return
    weights = network.backend.to_numpy(examples.weights)
    if not (weights if rows is None else weights[rows]).any():
        raise DataError(f"{what}: nothing counts: the weights of all examples are 0, or all targets are missing")


def check_class_weight(given: Any) -> None:
    """ValueError or TypeError where it is neither None, "balanced" nor a weight from 0 up by class."""
    if given is None or isinstance(given, str):
        if given is not None:
            check_choice("class_weight", given, ["balanced"])
        return
    if not isinstance(given, Mapping):
        raise TypeError(f'class_weight must be "balanced" or a dict such as {{0: 1.0, 1: 5.0}}, got {given!r}')
    for key, value in given.items():
        if check_finite_number(f"class_weight[{key!r}]", value) < 0:
            raise ValueError(f"class_weight[{key!r}] must be at least 0, got {value!r}")


def class_weights(
    network: Network, examples: Examples, given: Mapping[Any, float] | str | None, rows: np.ndarray
) -> np.ndarray | None:
    """Weights of the losses by class, (m, 1), or (m, K) for independent labels; None without any.

    "balanced": m / (K m_class), of the examples in `rows`, as scikit-learn's compute_class_weight, of the K classes
    that are there; of each of several labels for itself. An example of weight 2 is two of them, and a missing target
    is none.
    """
    check_class_weight(given)
    if given is None:
        return None
    if network.output == "linear":
        raise ValueError("class_weight is for classes: a linear output has none")
    Y = network.backend.to_numpy(examples.targets)
    if network.output == "sigmoid" and not np.isin(Y, (0, 1)).all():
        raise DataError("class_weight needs labels 0 and 1, and Y has probabilities in between")
    Y = Y.astype(np.int64)
    K = network.layer_sizes[-1] if network.output == "softmax" else 2
    table = np.ones((K, Y.shape[1]))
    if isinstance(given, str):
        weights = np.ones((1, 1)) if examples.weights is None else network.backend.to_numpy(examples.weights)
        weights = np.broadcast_to(weights.astype(np.float64), Y.shape)
        for label in range(Y.shape[1]):
            counts = np.bincount(Y[rows, label], weights[rows, label], K)
            present = counts > 0  # a class that is not there weighs nothing anyway
            table[present, label] = counts.sum() / (present.sum() * counts[present])
    else:
        for key, weight in given.items():
            table[_number(network, key, K)] = weight
        if not np.take_along_axis(table, Y[rows], axis=0).any():
            raise ValueError("class_weight: the classes that are there all have the weight 0: nothing is learned")
    return np.take_along_axis(table, Y, axis=0)


def _number(network: Network, key: Any, K: int) -> int:
    """The number of a class, given as that or by name."""
    if network.classes is not None and key in network.classes:
        return network.classes.index(key)
    if isinstance(key, (int, np.integer, bool, np.bool_)) and 0 <= key < K:
        return int(key)
    known = f", or one of {', '.join(network.classes)}" if network.classes is not None else ""
    raise ValueError(f"class_weight: expected a class from 0 to {K - 1}{known}, got {key!r}")

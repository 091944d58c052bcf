"""Networks of layers with all parameters random, and their gradients by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import dnn
from dnn.batches import in_place
from dnn.data import prepare
from dnn.optimizers import SGD
from dnn.precision import check_precision, compute_dtype
from dnn.state import TrainingState
from dnn.step import GRADIENTS, IN_PLACE, Step
from dnn.updating import Updating, keeps_of

SCALE = 64.0
"""Of losses in float16."""


@dataclass
class Gradients:
    """A network, its loss on one batch, and the gradients of its parameters, by name."""

    network: dnn.Network
    loss: float
    of: dict[str, np.ndarray]


def randomized(network: dnn.Network, seed: int = 4) -> dnn.Network:
    """Its parameters drawn anew, so that none is 0 or 1 and no two are equal; R of members stays as it is."""
    generator = np.random.default_rng(seed)
    for name, shape in network.parameters.shapes.items():
        network.parameters[name] = generator.standard_normal(shape)
    return network


def gradients(network: dnn.Network, X: np.ndarray, Y: np.ndarray, precision: str | None = None) -> Gradients:
    """Of a training step on these examples, as one batch, that all members see."""
    its = network.backend
    with its.stream():
        examples = prepare(network, X, Y, fitting=True).on(its)
        updating = Updating(SGD())
        state = TrainingState(SGD(), network.parameters, keeps_of(network, updating))
        reduced = check_precision(network.dtype, its, precision)
        state.set_precision(reduced, network.parameters)
        if reduced == "float16":
            state.arrays["loss_scale"].fill(SCALE)
        examples = in_place(its, examples, np.arange(len(X)), compute_dtype(network.dtype, its, reduced))
        step = Step(network, examples, len(X), GRADIENTS, IN_PLACE, updating, state.arrays, reduced).compile()
        step()
        flat, loss = its.to_numpy(step.array("grad")), float(its.to_numpy(step.loss)[0])
    found = {}
    for name, shape in network.parameters.shapes.items():
        first = network.parameters.extent(name)[0]
        part = flat[first : first + int(np.prod(shape))].reshape(shape)
        found[name] = part.astype(network.dtype) / (SCALE if reduced == "float16" else 1)
    return Gradients(network, loss, found)


def values_of(network: dnn.Network) -> dict[str, np.ndarray]:
    """The parameters, and what layers keep beside them, as copies on the host."""
    arrays = {**network.parameters, **network.layer_state}
    return {name: network.backend.to_numpy(view).copy() for name, view in arrays.items()}


def same_bits(a: dnn.Network, b: dnn.Network) -> bool:
    """Whether all parameters and all that layers keep are the same to the bit."""
    first, second = values_of(a), values_of(b)
    return first.keys() == second.keys() and all(first[n].tobytes() == second[n].tobytes() for n in first)


def close(results: Sequence[Any], expected: Sequence[Any], tolerance: float = 1e-12, usual: float = 0.0) -> None:
    """Each result within this share of the largest number expected of it, or of what is usual if that is larger."""
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        wanted = np.asarray(wanted)
        result = np.reshape(result, wanted.shape)
        finite = np.abs(wanted[np.isfinite(wanted)])
        largest = max(usual, finite.max() if finite.size else 0.0)
        np.testing.assert_allclose(result, wanted, rtol=tolerance, atol=tolerance * largest)

"""A network: its specification, its parameters, and what one does with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.activations import ACTIVATIONS
from dnn.backends import Backend, get_backend
from dnn.errors import check_number, check_rounded, check_whole
from dnn.heads import HEADS
from dnn.initializers import INITIALIZERS, initial_weights
from dnn.losses import LOSSES, Loss, checked_loss
from dnn.parameters import Parameters
from dnn.state import TrainingState

if TYPE_CHECKING:
    from dnn.training import History

DTYPES = ("float32", "float64")


class Network:
    """A dense network: [LINEAR → activation] × (L−1) → LINEAR → output.

    layer_sizes   [n_0, n_1, ..., n_L]: the inputs, the hidden layers' units, the outputs
    activation    of the hidden layers, or a list with one for each: relu, tanh, sigmoid, gelu, or a registered one
    output        sigmoid (one unit: two classes; K units: K independent labels), softmax (K classes), linear (values)
    initializer   he_, glorot_, lecun_ with normal or uniform; course_small, course_scaled (see dnn.initializers)
    seed          of the weights, of every epoch's shuffle and of the validation cut, on every backend the same
    dtype         float32, float64
    input_scale   what X is multiplied by; None: 1/255 if the first fit is on bytes, else 1
    backend       a backend's name or None for the one in use; the network keeps the backend it was made with
    loss          what is minimised: None, the output's own; or one of dnn.losses, or an object with its two methods

    `parameters["W1"]` is the device's view; assigning to it copies. `epochs` counts those trained so far, `classes`
    names the classes where a data file did, `feature_names` the features where X was a table.
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        activation: str | Sequence[str] = "relu",
        output: str = "sigmoid",
        initializer: str = "he_normal",
        seed: int = 0,
        dtype: Any = "float32",
        input_scale: float | None = None,
        backend: str | None = None,
        loss: str | Loss | None = None,
    ) -> None:
        self.check(layer_sizes, activation, output, initializer, seed, dtype, input_scale)
        self.layer_sizes = tuple(int(size) for size in layer_sizes)
        self.activation = activation if isinstance(activation, str) else tuple(activation)
        self.output = output
        self.loss = loss
        self.loss_function = HEADS[output].loss if loss is None else checked_loss(loss)
        self.initializer = initializer
        self.seed = int(seed)
        self.dtype = np.dtype(dtype).newbyteorder("=")  # "float32" it is, whatever the order of its bytes
        self.input_scale = None if input_scale is None else float(input_scale)
        self.input_kind: str | None = None
        """What the automatic input_scale was taken for: 'bytes' or 'numbers'; None where the scale was given."""
        self.input_shape: tuple[int, ...] | None = None
        """The shape of one example, as first fitted."""
        self.feature_names: list[str] | None = None
        """The columns of the first table fitted, in their order."""
        self.classes: list[str] | None = None
        self.epochs = 0
        self.backend: Backend = get_backend(backend)
        self.parameters = Parameters(self.backend, self.layer_sizes, self.dtype)
        for layer, W in enumerate(initial_weights(initializer, self.layer_sizes, self.seed), start=1):
            self.parameters[f"W{layer}"] = W
        self.training_state: TrainingState | None = None
        """What the last fit left for the next to go on with."""

    @staticmethod
    def check(
        layer_sizes: Any, activation: Any, output: Any, initializer: Any, seed: Any, dtype: Any, input_scale: Any
    ) -> None:
        """ValueError or TypeError where no network can be made of these settings; nothing is allocated."""
        _check_sizes(layer_sizes)
        settings: Any = (
            *(("activation", name, ACTIVATIONS) for name in _each_activation(layer_sizes, activation)),
            ("output", output, HEADS),
            ("initializer", initializer, INITIALIZERS),
            ("dtype", _dtype_name(dtype), DTYPES),
        )
        for name, value, choices in settings:
            if not isinstance(value, str) or value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        check_whole("seed", seed)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be from 0 to 4294967295, got {seed}")
        if output == "softmax" and layer_sizes[-1] < 2:
            raise ValueError("output softmax needs at least 2 units, got 1: use output='sigmoid' for two classes")
        if input_scale is not None:
            check_number("input_scale", input_scale)
            if not (math.isfinite(input_scale) and input_scale > 0):
                raise ValueError(f"input_scale must be a finite number above 0, got {input_scale!r}")
            check_rounded("input_scale", float(input_scale), np.dtype(dtype))

    def __copy__(self) -> Network:
        return copy.deepcopy(self)  # two networks do not share weights

    def __getstate__(self) -> dict[str, Any]:
        name = next((name for name, known in LOSSES.items() if known is self.loss), None)
        return self.__dict__ | {"loss_name": name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = state.pop("loss_name")
        self.__dict__.update(state)
        # another process may not know a registered activation
        self.check(self.layer_sizes, self.activation, self.output, self.initializer, self.seed, self.dtype, None)
        if name in LOSSES:  # itself, which a model file can name, and not a copy
            self.loss = LOSSES[name]
        self.loss_function = HEADS[self.output].loss if self.loss is None else checked_loss(self.loss)

    # ------------------------------------------------------------------------------------- use

    def fit(self, X: Any, Y: Any, **settings: Any) -> History:
        """Train on X, Y and return the History. The keywords are the fields of `dnn.training.FitSettings`."""
        from dnn.training import FitSettings, Trainer

        return Trainer(self, FitSettings.of(settings)).fit(X, Y)

    def predict(self, X: Any) -> np.ndarray:
        """Class numbers (m,); for several labels 0 or 1 (m, K); for a linear output the values, (m,) or (m, K)."""
        from dnn.inference import outputs

        P = outputs(self, X)
        if self.output == "softmax":
            return P.argmax(axis=1)
        if self.output == "sigmoid":
            P = (P > 0.5).astype(np.int64)
        return P[:, 0] if P.shape[1] == 1 else P

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (m, classes): two columns for one sigmoid unit, one a label for several."""
        if self.output == "linear":
            raise ValueError("a linear output has no probabilities: use predict")
        from dnn.inference import outputs

        P = outputs(self, X)
        return np.hstack([1 - P, P]) if P.shape[1] == 1 else P

    def evaluate(self, X: Any, Y: Any) -> dict[str, float]:
        """{"loss": ..., "accuracy": ...} over all examples; "rmse" in place of accuracy for a linear output."""
        from dnn.inference import evaluate

        return evaluate(self, X, Y)

    def save(self, path: str | PathLike[str], force: bool = False) -> None:
        """Write a model file (see dnn.model_file). An existing one is replaced only with `force`."""
        from dnn import model_file

        model_file.save(self, path, force=force)

    # ------------------------------------------------------------------------------------- in words

    @property
    def activations(self) -> list[str]:
        """Of each hidden layer."""
        return _each_activation(self.layer_sizes, self.activation)[: len(self.layer_sizes) - 2]

    @property
    def n_parameters(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in Parameters.shapes(self.layer_sizes))

    def __repr__(self) -> str:
        return (
            f"Network({list(self.layer_sizes)}, activation={self.activation!r}, output={self.output!r}, "
            f"initializer={self.initializer!r}, seed={self.seed}, dtype={self.dtype.name!r}, "
            f"input_scale={self.input_scale!r}, backend={self.backend.name!r})"
        )

    def summary(self) -> str:
        """A table of the layers: shapes and parameters; then dtype and backend. Print it."""
        rows = [("layer", "W", "b", "activation", "parameters")]
        last = len(self.layer_sizes) - 1
        for layer in range(1, last + 1):
            n_in, n_out = self.layer_sizes[layer - 1 : layer + 1]
            activation = self.output if layer == last else self.activations[layer - 1]
            rows.append((str(layer), f"({n_out}, {n_in})", f"({n_out},)", activation, f"{n_out * (n_in + 1):,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1].rjust(widths[-1])]
            )
            for row in rows
        ]
        megabytes = self.parameters.flat.nbytes / 1e6
        lines.append(
            f"{self.n_parameters:,} parameters, {self.dtype.name}, {megabytes:.2f} MB, backend {self.backend.name}"
        )
        return "\n".join(lines)


def _dtype_name(dtype: Any) -> Any:
    try:
        return np.dtype(dtype).name
    except TypeError:
        return dtype


def _each_activation(layer_sizes: Any, activation: Any) -> list[Any]:
    """One activation for each hidden layer; ValueError where a list has another number of them."""
    hidden = len(layer_sizes) - 2
    if not isinstance(activation, (list, tuple)):
        return [activation] * hidden or [activation]  # an unused one is checked too
    if len(activation) != hidden:
        raise ValueError(f"activation must be one for all hidden layers, or {hidden}, one for each; got {activation!r}")
    return list(activation)


def _check_sizes(layer_sizes: Any) -> None:
    is_list = isinstance(layer_sizes, Sequence) and not isinstance(layer_sizes, str)
    if not (is_list or (isinstance(layer_sizes, np.ndarray) and layer_sizes.ndim == 1)):
        raise TypeError(f"layer_sizes must be a list such as [784, 256, 10], got {layer_sizes!r}")
    if len(layer_sizes) < 2:
        raise ValueError(f"layer_sizes needs the inputs and at least one layer, got {list(layer_sizes)}")
    for layer, size in enumerate(layer_sizes):
        where = "layer_sizes: " + ("the number of inputs" if layer == 0 else f"the size of layer {layer}")
        check_whole(where, size)
        if size < 1:
            raise ValueError(f"{where} must be at least 1, got {size}")
        if size >= 2**40:
            raise ValueError(f"{where} must be below {2**40}, which no machine has memory for")

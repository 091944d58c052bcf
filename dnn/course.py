"""The functions of "Building your Deep Neural Network: Step by Step", with the assignment's names, shapes and caches.

The assignment's layout is one example per column: X (n_x, m), b (n, 1), AL and Y (1, m). These functions convert it to
the engine's layout by transposed views and call the same mathematics; equation numbers are the assignment's. They
accept any backend's arrays, lists and numbers as `np.array` does, never modify their inputs, and print only what the
assignment asks to print. New arrays (parameters, loaded data) are created on the backend in use. Shapes below: m
examples, n_l units in layer l. Labels are from 0 to 1, and may also have the shape (m,).
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np

from dnn import functional
from dnn.backends import Array, Backend, backend_of, get_backend
from dnn.data import Examples, open_dataset
from dnn.data.sources import as_array, read
from dnn.errors import DataError, check_number, check_whole
from dnn.initializers import initial_weights
from dnn.network import Network
from dnn.optimizers import SGD
from dnn.state import TrainingState
from dnn.step import IN_PLACE, TRAIN, Step

__all__ = [
    "L_layer_model",
    "L_model_backward",
    "L_model_forward",
    "compute_cost",
    "initialize_parameters",
    "initialize_parameters_deep",
    "linear_activation_backward",
    "linear_activation_forward",
    "linear_backward",
    "linear_forward",
    "load_data",
    "predict",
    "print_grads",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "two_layer_model",
    "update_parameters",
]

Cache = tuple[Any, ...]
Parameters = dict[str, Array]

_ACTIVATIONS = ("sigmoid", "relu")

# ------------------------------------------------------------------------------------------ initialization


def initialize_parameters(n_x: int, n_h: int, n_y: int, seed: int = 1) -> Parameters:
    """W1 (n_h, n_x), b1 (n_h, 1), W2 (n_y, n_h), b2 (n_y, 1): W = randn · 0.01, b = 0 (section 3.1)."""
    return initialize_parameters_deep([n_x, n_h, n_y], seed)


def initialize_parameters_deep(layer_dims: Sequence[int], seed: int = 3) -> Parameters:
    """Wl (n_l, n_{l-1}) = randn · 0.01, bl (n_l, 1) = 0 for l = 1..L (section 3.2)."""
    backend, parameters = get_backend(), {}
    sizes = _sizes("layer_dims", layer_dims)
    for layer, W in enumerate(initial_weights("course_small", sizes, seed), start=1):
        parameters[f"W{layer}"] = backend.asarray(W)
        parameters[f"b{layer}"] = backend.zeros((W.shape[0], 1), np.float64)
    return parameters


# ----------------------------------------------------------------------------------------------- forward


@np.errstate(all="ignore")
def sigmoid(Z: Array) -> tuple[Array, Array]:
    """A = σ(Z) = 1 / (1 + exp(−Z)), and the cache Z, of any shape."""
    backend, (Z,) = _arrays(Z=Z)
    return functional.sigmoid(backend.xp, Z), Z


@np.errstate(all="ignore")
def relu(Z: Array) -> tuple[Array, Array]:
    """A = max(0, Z), and the cache Z, of any shape."""
    backend, (Z,) = _arrays(Z=Z)
    return functional.relu(backend.xp, Z), Z


@np.errstate(all="ignore")
def linear_forward(A: Array, W: Array, b: Array) -> tuple[Array, Cache]:
    """Z = W A + b, equation (4), and the cache (A, W, b). A (n_{l-1}, m), W (n_l, n_{l-1}), b (n_l, 1), Z (n_l, m)."""
    _, cache = _given(A=A, W=W, b=b)
    backend, (A, W, b) = _arrays(A=A, W=W, b=b)
    _check_linear(A, W, b)
    return functional.linear_forward(backend.xp, A.T, W, b.reshape(-1)).T, tuple(cache)


def linear_activation_forward(A_prev: Array, W: Array, b: Array, activation: str) -> tuple[Array, Cache]:
    """A = g(W A_prev + b) with g "sigmoid" or "relu", and the cache ((A_prev, W, b), Z)."""
    forward = sigmoid if _checked_activation(activation) == "sigmoid" else relu
    Z, linear_cache = linear_forward(A_prev, W, b)
    A, activation_cache = forward(Z)
    return A, (linear_cache, activation_cache)


def L_model_forward(X: Array, parameters: Parameters) -> tuple[Array, list[Cache]]:
    """[LINEAR → RELU] × (L−1) → LINEAR → SIGMOID: AL (n_L, m) and the L caches. X (n_x, m)."""
    L = _number_of_layers(parameters)
    backend, (A, *_) = _given(X=X, W1=parameters["W1"])
    _check_finite(backend, "X", A)
    caches = []
    for layer in range(1, L + 1):
        activation = "sigmoid" if layer == L else "relu"
        W, b = parameters[f"W{layer}"], parameters[f"b{layer}"]
        try:
            A, cache = linear_activation_forward(A, W, b, activation)
        except DataError as error:
            raise DataError(f"layer {layer}: {error}") from None
        caches.append(cache)
    return A, caches


@np.errstate(all="ignore")
def compute_cost(AL: Array, Y: Array) -> Array:
    """J = −1/m Σ_i [y_i log a_i + (1 − y_i) log(1 − a_i)], equation (7), as an array of shape (). AL, Y (1, m).

    0 · log 0 is 0; a wrong prediction with certainty costs inf.
    """
    backend, (AL,), Y = _with_labels("Y", Y, AL=AL)
    if len(AL.shape) != 2 or AL.shape[0] != 1 or AL.shape[1] == 0:
        raise DataError(f"AL: expected shape (1, m) with m at least 1, got {tuple(AL.shape)}")
    Y = _labels(backend, "Y", Y, "AL", AL)
    xp, m = backend.xp, Y.shape[1]
    log_a = xp.log(xp.where(Y == 0, 1, AL))
    log_1_a = xp.log(xp.where(Y == 1, 1, 1 - AL))
    # the assignment's order of operations: the printed digits depend on it
    cost = (-1 / m) * (xp.dot(Y, log_a.T) + xp.dot(1 - Y, log_1_a.T))
    return xp.squeeze(cost)


# ---------------------------------------------------------------------------------------------- backward


@np.errstate(all="ignore")
def sigmoid_backward(dA: Array, cache: Array) -> Array:
    """dZ = dA · s (1 − s) with s = σ(Z), equation (11); the cache is Z."""
    backend, (dA, Z) = _arrays(dA=dA, Z=cache)
    _check_same_shape("dA", dA, "the cached Z", Z)
    A, _ = sigmoid(Z)
    return functional.sigmoid_backward(backend.xp, dA, A)


@np.errstate(all="ignore")
def relu_backward(dA: Array, cache: Array) -> Array:
    """dZ = dA where Z > 0, else 0, equation (11); the cache is Z."""
    backend, (dA, Z) = _arrays(dA=dA, Z=cache)
    _check_same_shape("dA", dA, "the cached Z", Z)
    A, _ = relu(Z)
    return functional.relu_backward(backend.xp, dA, A)


@np.errstate(all="ignore")
def linear_backward(dZ: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """dA_prev = Wᵀ dZ, dW = 1/m dZ A_prevᵀ, db = 1/m Σ_i dZ_i: equations (8) to (10), in the shapes of A_prev, W, b."""
    A_prev, W, b = _parts("cache", cache, "A_prev", "W", "b")
    backend, (dZ, A_prev, W, b) = _arrays(dZ=dZ, A_prev=A_prev, W=W, b=b)
    _check_linear(A_prev, W, b, "A_prev")
    n, m = W.shape[0], A_prev.shape[1]
    if tuple(dZ.shape) != (n, m):
        raise DataError(f"dZ: expected shape {(n, m)}, units of W {W.shape} by examples, got {tuple(dZ.shape)}")
    dA_prev, dW, db = functional.linear_backward(backend.xp, dZ.T, A_prev.T, W)
    return dA_prev.T, dW * (1 / m), (db * (1 / m)).reshape(n, 1)


def linear_activation_backward(dA: Array, cache: Cache, activation: str) -> tuple[Array, Array, Array]:
    """dA_prev, dW, db of LINEAR → "sigmoid" or "relu", from dA (n_l, m) and the cache of the forward pass."""
    backward = sigmoid_backward if _checked_activation(activation) == "sigmoid" else relu_backward
    linear_cache, activation_cache = _parts("cache", cache, "linear_cache", "activation_cache")
    return linear_backward(backward(dA, activation_cache), linear_cache)


@np.errstate(all="ignore")
def L_model_backward(AL: Array, Y: Array, caches: list[Cache]) -> dict[str, Array]:
    """grads with dA0..dA(L−1), dW1..dWL, db1..dbL, starting from dAL = −(Y / AL − (1 − Y) / (1 − AL)).

    Where the sigmoid has saturated, so that AL is exactly 0 or 1, dZ is its limit AL − Y.
    """
    grads, L = {}, len(caches)
    if L == 0:
        raise DataError("caches: expected one cache a layer, got none")
    linear_cache, Z = _parts("the last of caches", caches[-1], "linear_cache", "activation_cache")
    # the labels have no say in the dtype: in another one σ(Z) is not the AL that has saturated
    backend, (AL, Z), Y = _with_labels("Y", Y, AL=AL, Z=Z)
    _check_same_shape("AL", AL, "the cached Z of the last layer", Z)
    Y = _labels(backend, "Y", Y, "AL", AL)
    xp, (S, _) = backend.xp, sigmoid(Z)
    # 0/0 counts as 0 here: a term of weight zero, whatever its slope
    dAL = -(xp.where(Y == 0, 0, Y / AL) - xp.where(Y == 1, 0, (1 - Y) / (1 - AL)))
    dZ = xp.where((S == AL) & (S * (1 - S) == 0), AL - Y, sigmoid_backward(dAL, Z))
    grads[f"dA{L - 1}"], grads[f"dW{L}"], grads[f"db{L}"] = linear_backward(dZ, linear_cache)
    for layer in range(L - 1, 0, -1):
        grads[f"dA{layer - 1}"], grads[f"dW{layer}"], grads[f"db{layer}"] = linear_activation_backward(
            grads[f"dA{layer}"], caches[layer - 1], "relu"
        )
    return grads


@np.errstate(all="ignore")
def update_parameters(parameters: Parameters, grads: dict[str, Array], learning_rate: float) -> Parameters:
    """W ← W − α dW, b ← b − α db: equations (16) and (17), in a new dictionary."""
    check_number("learning_rate", learning_rate)
    updated = {}
    for name, value in parameters.items():
        if f"d{name}" not in grads:
            raise DataError(f"grads: expected d{name} for {name} of parameters, got {', '.join(grads) or 'none'}")
        _, (value, grad) = _arrays(**{name: value, f"d{name}": grads[f"d{name}"]})
        _check_same_shape(name, value, f"d{name}", grad)
        updated[name] = value - float(learning_rate) * grad
    return updated


def print_grads(grads: dict[str, Array]) -> None:
    """Print dW1, db1 and dA1."""
    for name in ("dW1", "db1", "dA1"):
        print(f"{name} = {grads[name]}")


# ------------------------------------------------------------------------------------------- application


def load_data(
    train_path: str | PathLike[str], test_path: str | PathLike[str]
) -> tuple[Array, Array, Array, Array, np.ndarray]:
    """train_x_orig (m, ...), train_y (1, m), test_x_orig, test_y (1, m), classes, from the assignment's two files."""
    backend = get_backend()
    with open_dataset(train_path) as train, open_dataset(test_path) as test:
        for data, part, split in ((train, train.train, "train"), (test, test.test, "test")):
            if part is None:
                raise DataError(f"{data.path}: no {split}_set_x in this file: pass the {split} file here")
        assert train.train is not None and test.test is not None
        arrays = [
            array
            for part in (train.train, test.test)
            for array in (backend.asarray(part.X[...]), backend.asarray(part.Y[...].reshape(1, -1)))
        ]
        names = test.classes or train.classes
        if names is None:
            raise DataError(f"{fspath(test_path)}: expected list_classes in this file or the train file, got neither")
    return (*arrays, np.array([name.encode() for name in names]))


def two_layer_model(
    X: Array,
    Y: Array,
    layers_dims: Sequence[int],
    learning_rate: float = 0.0075,
    num_iterations: int = 3000,
    print_cost: bool = False,
) -> tuple[Parameters, list[float]]:
    """LINEAR → RELU → LINEAR → SIGMOID by gradient descent; layers_dims = (n_x, n_h, n_y). Seed 1, randn · 0.01.

    Returns (parameters, costs), as L_layer_model does.
    """
    sizes = _sizes("layers_dims", layers_dims)
    if len(sizes) != 3:
        raise ValueError(f"two_layer_model: layers_dims must be (n_x, n_h, n_y), got {tuple(sizes)}")
    return _model(X, Y, sizes, "course_small", learning_rate, num_iterations, print_cost)


def L_layer_model(
    X: Array,
    Y: Array,
    layers_dims: Sequence[int],
    learning_rate: float = 0.0075,
    num_iterations: int = 3000,
    print_cost: bool = False,
) -> tuple[Parameters, list[float]]:
    """[LINEAR → RELU] × (L−1) → LINEAR → SIGMOID by gradient descent. X (n_x, m), Y (1, m). Seed 1, randn / √n_{l-1}.

    Returns (parameters, costs), with the costs at iterations 0, 100, 200, ... and the last, each before its update.
    """
    return _model(X, Y, _sizes("layers_dims", layers_dims), "course_scaled", learning_rate, num_iterations, print_cost)


def predict(X: Array, y: Array, parameters: Parameters) -> Array:
    """p (1, m): 1 where AL > 0.5, else 0. Also prints the accuracy against y (1, m)."""
    AL, _ = L_model_forward(X, parameters)
    backend, (AL,), y = _with_labels("y", y, AL=AL)
    y = _labels(backend, "y", y, "AL", AL)
    _check_finite(backend, "AL, computed with these parameters", AL)
    p = (AL > 0.5).astype(AL.dtype)
    print(f"Accuracy: {float(backend.xp.sum((p == y) / y.shape[1]))}")
    return p


def _model(
    X: Array,
    Y: Array,
    layers_dims: list[int],
    initializer: str,
    learning_rate: float,
    num_iterations: int,
    print_cost: bool,
) -> tuple[Parameters, list[float]]:
    check_whole("num_iterations", num_iterations)
    backend, (X,), Y = _with_labels("Y", Y, X=X)
    if len(X.shape) != 2 or X.shape[1] == 0 or X.shape[0] != layers_dims[0] or layers_dims[-1] != 1:
        raise DataError(
            f"X {tuple(X.shape)} and layers_dims {tuple(layers_dims)}: expected X (n_x, m), n_x as the first "
            "of layers_dims, and 1 as the last"
        )
    m = X.shape[1]
    Y = _labels(backend, "Y", Y, "X", X, (1, m))
    _check_finite(backend, "X", X)
    network = Network(layers_dims, initializer=initializer, seed=1, dtype=X.dtype, backend=backend.name)
    examples = Examples(backend.xp.ascontiguousarray(X.T), backend.xp.ascontiguousarray(Y.T))
    state = TrainingState(SGD(learning_rate), network.parameters)
    step = Step(network, examples, m, TRAIN, IN_PLACE, state.optimizer, state.arrays)
    costs = []
    with backend.stream(), np.errstate(all="ignore"):
        step.compile()
        for i in range(num_iterations):
            step()
            if i % 100 == 0 or i == num_iterations - 1:
                costs.append(float(backend.to_numpy(step.loss)[0]))
                if print_cost:
                    print(f"Cost after iteration {i}: {costs[-1]}")
    parameters = {}
    for layer in range(1, len(layers_dims)):
        parameters[f"W{layer}"] = network.parameters[f"W{layer}"].copy()
        parameters[f"b{layer}"] = network.parameters[f"b{layer}"].reshape(-1, 1).copy()
    return parameters, costs


# ------------------------------------------------------------------------------------------------ inside


def _given(**arrays: Any) -> tuple[Backend, list[Array]]:
    """The arrays' backend, and the arrays; what is none, lists and numbers for instance, is made one there.

    DataError if they are not all of the same backend, or not of numbers.
    """
    of = {name: its for name, array in arrays.items() if (its := _backend_of(array)) is not None}
    backend = next(iter(of.values()), None) or get_backend()
    if any(other is not backend for other in of.values()):
        where = ", ".join(f"{name} on {its.name}" for name, its in of.items())
        raise DataError(f"expected arrays of one backend, got {where}: move them with get_backend(name).asarray")
    found = []
    for name, array in arrays.items():
        if name not in of:
            array = backend.asarray(np.asarray(read(name, as_array(name, array), ...)))
        elif array.dtype.kind not in "biuf":
            raise DataError(f"{name}: expected numbers, got {array.dtype}")
        found.append(array)
    return backend, found


def _backend_of(array: Any) -> Backend | None:
    # a scalar of NumPy is a number, wherever the others are; of other kinds of NumPy's array, masked ones are checked
    if isinstance(array, np.generic) or (isinstance(array, np.ndarray) and type(array) is not np.ndarray):
        return None
    try:
        return backend_of(array)
    except TypeError:
        return None


def _arrays(**arrays: Any) -> tuple[Backend, list[Array]]:
    """Likewise, in their common floating dtype, float64 if none is floating."""
    backend, found = _given(**arrays)
    floating = [array.dtype for array in found if array.dtype.kind == "f"]
    dtype = np.result_type(*floating) if floating else np.dtype(np.float64)
    return backend, [array.astype(dtype, copy=False) for array in found]


def _with_labels(name: str, labels: Any, **arrays: Any) -> tuple[Backend, list[Array], Array]:
    """Likewise, and the labels, in the others' dtype."""
    given = _given(**arrays, **{name: labels})[1]
    backend, found = _arrays(**dict(zip(arrays, given[:-1], strict=True)))
    return backend, found, given[-1].astype(found[0].dtype, copy=False)


def _labels(
    backend: Backend, name: str, labels: Array, of: str, array: Array, expected: tuple[int, ...] | None = None
) -> Array:
    """The labels, checked, in the shape of the predictions: that of `array`, or as expected."""
    expected, shape = expected or tuple(array.shape), tuple(labels.shape)
    flat = [expected[1:], ()][: 2 if expected == (1, 1) else 1] if expected[0] == 1 else []
    if shape != expected and shape not in flat:
        what = f"{expected} or {expected[1:]}" if flat else f"{expected}"
        raise DataError(f"{name}: expected shape {what}, a label for each column of {of}, got {shape}")
    labels = labels.reshape(expected)
    wrong = _first_but(backend, labels, (labels >= 0) & (labels <= 1))  # in which nan is not
    if wrong is not None:
        raise DataError(
            f"{name}: expected labels 0 and 1 (or probabilities in between), got {wrong:g}: number the classes 0 and 1"
        )
    return labels


def _check_finite(backend: Backend, name: str, array: Array) -> None:
    wrong = _first_but(backend, array, backend.xp.isfinite(array))
    if wrong is not None:
        raise DataError(f"{name}: expected finite numbers, got {wrong:g}")


def _first_but(backend: Backend, array: Array, right: Array) -> float | None:
    """The first element that is not right, if there is one."""
    if bool(right.all()):
        return None
    return float(backend.to_numpy(array)[~backend.to_numpy(right)][0])


def _sizes(name: str, given: Any) -> list[int]:
    """The layers' sizes: n_x, ..., n_L."""
    try:
        sizes = list(given)
    except TypeError:
        raise TypeError(f"{name} must be a list of the layers' sizes, got {given!r}") from None
    for size in sizes:
        check_whole(f"each of {name}", size)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"{name} must be at least two sizes from 1 on, got {sizes}")
    return [int(size) for size in sizes]


def _parts(name: str, given: Any, *parts: str) -> tuple[Any, ...]:
    if not isinstance(given, (tuple, list)) or len(given) != len(parts):
        got = f"{len(given)} values" if isinstance(given, (tuple, list)) else type(given).__name__
        raise DataError(f"{name}: expected ({', '.join(parts)}) of the forward pass, got {got}")
    return tuple(given)


def _number_of_layers(parameters: Parameters) -> int:
    L = len(parameters) // 2
    names = [f"{letter}{layer}" for layer in range(1, L + 1) for letter in "Wb"]
    if L == 0 or set(parameters) != set(names):
        raise DataError(f"parameters: expected W1, b1, ..., WL, bL, got {', '.join(parameters) or 'none'}")
    return L


def _checked_activation(activation: str) -> str:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    return activation


def _check_linear(A: Array, W: Array, b: Array, name: str = "A") -> None:
    if len(A.shape) != 2 or len(W.shape) != 2 or W.shape[1] != A.shape[0]:
        raise DataError(
            f"{name} has shape {tuple(A.shape)} and W {tuple(W.shape)}: expected {name} (n_prev, m), one example per "
            "column, and W (n, n_prev) with the same n_prev; is one of them transposed?"
        )
    if tuple(b.shape) != (W.shape[0], 1):
        raise DataError(
            f"b: expected shape {(W.shape[0], 1)} for W {tuple(W.shape)}, got {tuple(b.shape)}: reshape(-1, 1)"
        )


def _check_same_shape(name: str, array: Array, other_name: str, other: Array) -> None:
    if tuple(array.shape) != tuple(other.shape):
        raise DataError(f"{name} has shape {tuple(array.shape)}, {other_name} {tuple(other.shape)}: expected the same")

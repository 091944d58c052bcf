"""A network: its specification, its parameters, and what one does with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.activations import ACTIVATIONS
from dnn.backends import Backend, get_backend
from dnn.errors import DataError, check_at_least, check_choice, check_number, check_rounded, check_whole
from dnn.heads import HEADS
from dnn.initializers import COURSE, Generator, check_initializer, weights
from dnn.layers import (
    NORMS,
    Activation,
    CategoricalEmbedding,
    Dense,
    Dropout,
    Layer,
    learns,
    needs_data,
    walk,
    width_after,
)
from dnn.layers.ensemble import shared as shared_by_members
from dnn.losses import LOSSES, GaussianNLL, Loss, checked_loss, loss_config, outputs_per_target, suits
from dnn.parameters import Parameters, in_order, numbered
from dnn.state import TrainingState

if TYPE_CHECKING:
    from dnn.training import History

DTYPES = ("float32", "float64")
INPUT_SCALES, TARGET_SCALES = ("standard", "robust"), ("standard",)
MOST_MEMBERS = 1024
OTHER_FAMILY = 4
"""First word of the seed for weights of layers that are not dense."""


class Network:
    """A dense network: [LINEAR → norm → activation → dropout] × (L−1) → LINEAR → output, or the layers in a list.

    layer_sizes   [n_0, n_1, ..., n_L]: the inputs, the hidden layers' units, the outputs; with `layers` the inputs
    layers        the layers spelled out, as in Network(784, [dnn.Dense(256, "gelu"), dnn.Dropout(0.2), dnn.Dense(10)])
    activation    of the hidden layers, or a list with one for each: see dnn.activations
    dropout       the rate after each hidden layer, or a list with one for each
    norm          before each activation: "batch", "layer", "rms" or None, or a list with one for each
    output        sigmoid (one unit: two classes; K units: K independent labels), softmax (K classes), linear (values)
    initializer   he_, glorot_, lecun_ with normal or uniform, orthogonal, a number, the course's two, or a list with
                  one for each dense layer (see dnn.initializers)
    seed          of the weights, the masks, every epoch's shuffle and the validation cut, on every backend the same
    dtype         float32, float64
    input_scale   what X is multiplied by; "standard": (x − mean) / deviation of each feature; "robust": (x − median) /
                  interquartile range, with outliers drawn in; both of what the first fit trains on (see
                  dnn.data.scaling); None: 1/255 if the first fit is on bytes, else 1
    target_scale  "standard": a linear output learns (y − mean) / deviation of each target. Its answers, in float64, and
                  all metrics are in y's units, its loss is in those of the deviation
    backend       a backend's name or None for the one in use; the network keeps the backend it was made with
    loss          what is minimised: None, the output's own; or one of dnn.losses, or an object with its two methods
    members       so many networks in one, trained side by side on shuffles of their own; answers are their mean
    shared        "tabm": the members share their weights but for factors on inputs and outputs, biases and heads

    `parameters["W1"]` is the device's view; assigning to it copies. `epochs` counts those trained so far, `classes`
    names the classes where a data file did, `feature_names` the features where X was a table.
    """

    def __init__(
        self,
        layer_sizes: Sequence[int] | int,
        layers: Sequence[Layer] | None = None,
        *,
        activation: str | Sequence[str] | None = None,
        output: str = "sigmoid",
        initializer: str | float | Sequence[str | float] = "he_normal",
        dropout: float | Sequence[float] = 0.0,
        norm: str | Sequence[str | None] | None = None,
        seed: int = 0,
        dtype: Any = "float32",
        input_scale: float | str | None = None,
        target_scale: str | None = None,
        backend: str | None = None,
        loss: str | Loss | None = None,
        members: int = 1,
        shared: str | None = None,
    ) -> None:
        self.layers = specified(layer_sizes, layers, activation, initializer, dropout, norm)
        n_in = layer_sizes if layers is not None else layer_sizes[0]  # type: ignore[index]
        check_settings(
            n_in,
            self.layers,
            output=output,
            initializer=initializer,
            seed=seed,
            dtype=dtype,
            input_scale=input_scale,
            target_scale=target_scale,
            loss=loss,
            members=members,
            shared=shared,
        )
        self.layer_sizes = sizes_of(int(n_in), self.layers)  # type: ignore[arg-type]
        self.spelled_out = layers is not None
        """Whether the layers were given one by one."""
        self.activation = _setting("relu" if activation is None else activation) if layers is None else None
        self.dropout = None if self.spelled_out else _setting(dropout)
        self.norm = None if self.spelled_out else _setting(norm)
        self.output = output
        self.loss = loss
        self.loss_function = HEADS[output].loss if loss is None else checked_loss(loss)
        self.initializer = _setting(initializer)
        self.seed = int(seed)
        self.dtype = np.dtype(dtype).newbyteorder("=")  # "float32" it is, whatever the order of its bytes
        self.input_scale = float(input_scale) if isinstance(input_scale, (int, float, np.number)) else input_scale
        self.target_scale = target_scale
        self.members, self.shared = int(members), shared
        self.statistics: dict[str, np.ndarray] = {}
        """What "standard" and "robust" scales take from the first fit's data: input_shift, input_factor (n_in,),
        target_shift, target_factor (K,), in float64."""
        self.input_kind: str | None = None
        """What the automatic input_scale was taken for: 'bytes' or 'numbers'; None where the scale was given."""
        self.input_shape: tuple[int, ...] | None = None
        """The shape of one example, as first fitted."""
        self.feature_names: list[str] | None = None
        """The columns of the first table fitted, in their order."""
        self.classes: list[str] | None = None
        self.epochs = self.steps = 0
        self.backend: Backend = get_backend(backend)
        self.stack = self.layers if shared is None else shared_by_members(self.layers, self.members)
        """The layers as they are computed."""
        self.training_state: TrainingState | None = None
        """What the last fit left for the next to go on with."""
        self._allocate(self.shapes, self.state_shapes)

    @property
    def copies(self) -> int:
        """The members that have all parameters for themselves."""
        return self.members if self.shared is None else 1

    @property
    def code_columns(self) -> tuple[int, ...]:
        """The features that are codes of categories: nothing scales them."""
        return code_columns(self.layers)

    @property
    def targets(self) -> int:
        """The number of targets of an example: fewer than outputs where the loss takes several for each."""
        return self.layer_sizes[-1] // outputs_per_target(self.loss_function)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters, by name."""
        return self._shapes("parameter", lambda layer, n_in: layer.shapes(n_in))

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what layers keep beside parameters, by name."""
        return self._shapes("state", lambda layer, n_in: layer.state_shapes(n_in))

    def _shapes(
        self, what: str, shapes_of: Callable[[Layer, int], Mapping[str, Sequence[int]]]
    ) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        owners: dict[str, Layer] = {}
        for layer, number, n_in, _ in walk(self.stack, self.layer_sizes[0]):
            for own, shape in shapes_of(layer, n_in).items():
                name = numbered(own, number)
                if name in found:
                    raise _shared_name(what, name, owners[name], layer)
                owners[name] = layer
                found[name] = (self.copies, *shape) if self.copies > 1 else tuple(shape)
        return in_order(found)

    @property
    def least_batch(self) -> int:
        """The fewest examples of a batch from which all of its layers can learn."""
        return max(layer.least_batch for layer, *_ in walk(self.stack, self.layer_sizes[0]))

    def _allocate(self, shapes: Mapping[str, Sequence[int]], state_shapes: Mapping[str, Sequence[int]]) -> None:
        self.parameters = Parameters(self.backend, shapes, self.dtype)
        self.layer_state = Parameters(self.backend, state_shapes, self.dtype)
        """What layers keep beside parameters: running statistics, edges of bins."""
        self._initialize()

    def _initialize(self) -> None:
        legacy = np.random.RandomState(self.seed)
        default = self.initializer if not isinstance(self.initializer, tuple) else "he_normal"
        for member in range(self.copies):
            families: dict[str, int] = {}
            for layer, number, n_in, _ in walk(self.stack, self.layer_sizes[0]):
                # of dense layers [seed, 0, number], and of the others what no other stream begins with
                family = families.setdefault(layer.family, len(families))
                key = [0, number] if layer.family == "dense" else [OTHER_FAMILY, family, number]
                words = np.random.SeedSequence([self.seed, *key, *([member] if member else [])])
                generator: Generator = np.random.Generator(np.random.PCG64(words))

                def draw(initializer: Any, shape: Any, generator: Generator = generator) -> np.ndarray:
                    wanted = default if initializer is None else initializer
                    return weights(wanted, shape, legacy if wanted in COURSE else generator)

                for holder, shapes in (
                    (self.parameters, layer.shapes(n_in)),
                    (self.layer_state, layer.state_shapes(n_in)),
                ):
                    for name, shape in shapes.items():
                        view = holder[numbered(name, number)]
                        initial = np.broadcast_to(np.asarray(layer.initial(name, shape, draw), np.float64), shape)
                        part = view if self.copies == 1 else view[member]
                        part[...] = self.backend.asarray(initial.astype(self.dtype))

    def __copy__(self) -> Network:
        return copy.deepcopy(self)  # two networks do not share weights

    def __getstate__(self) -> dict[str, Any]:
        name = next((name for name, known in LOSSES.items() if known is self.loss), None)
        return self.__dict__ | {"loss_name": name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = state.pop("loss_name")
        self.__dict__.update(state)
        # another process may not know a registered activation
        for layer, *_ in walk(self.layers, self.layer_sizes[0]):
            given = layer.name if isinstance(layer, Activation) else getattr(layer, "activation", None)
            if given is not None:
                check_choice("activation", given, ACTIVATIONS)
        if name in LOSSES:  # itself, which a model file can name, and not a copy
            self.loss = LOSSES[name]
        self.loss_function = HEADS[self.output].loss if self.loss is None else checked_loss(self.loss)

    # ------------------------------------------------------------------------------------- use

    def fit(self, X: Any, Y: Any, **settings: Any) -> History:
        """Train on X, Y and return the History. The keywords are the fields of `dnn.training.FitSettings`."""
        from dnn.training import FitSettings, Trainer

        return Trainer(self, FitSettings.of(settings)).fit(X, Y)

    def partial_fit(self, X: Any, Y: Any, **settings: Any) -> History:
        """One pass over X, Y, without a progress bar; by default with the optimizer of the last fit, and its state."""
        if self.training_state is not None:
            settings.setdefault("optimizer", self.training_state.optimizer)
        return self.fit(X, Y, **({"epochs": 1, "verbose": False} | settings))

    def predict(self, X: Any) -> np.ndarray:
        """Class numbers (m,); for several labels 0 or 1 (m, K); for a linear output the values, (m,) or (m, K).

        A loss with several outputs for a target decides what its values are: the mean and the variance, the quantiles.
        With a target_scale they are in float64.
        """
        from dnn.inference import outputs

        self._check_learned()
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

        self._check_learned()
        P = outputs(self, X)
        return np.hstack([1 - P, P]) if P.shape[1] == 1 else P

    def predict_spread(self, X: Any) -> np.ndarray:
        """The standard deviation of the members' answers, (m,) or (m, outputs): how far they disagree."""
        if self.members < 2:
            raise ValueError("a network of one member has no spread: make it with members=8, for example")
        from dnn.inference import outputs

        self._check_learned()
        spread = outputs(self, X, "spread")
        return spread[:, 0] if spread.shape[1] == 1 else spread

    def evaluate(
        self,
        X: Any,
        Y: Any,
        *,
        metrics: Sequence[Any] = (),
        sample_weight: Any = None,
        class_weight: Any = None,
        missing_targets: str = "error",
    ) -> dict[str, Any]:
        """{"loss": ..., "accuracy": ...} over all examples; "rmse" in place of accuracy for a linear output.

        `metrics` adds others, by name (see dnn.metrics); the rest is as in `fit`.
        """
        from dnn.inference import evaluate

        check_choice("missing_targets", missing_targets, ["error", "mask"])
        self._check_learned()
        return evaluate(self, X, Y, metrics, sample_weight, class_weight, missing_targets == "mask")

    def _check_learned(self) -> None:
        """DataError where a layer has yet to learn from data: no fit was done, and its state is as it began."""
        layer, number, n_in, _ = next(walk(self.stack, self.layer_sizes[0]))
        if self.epochs or not learns(layer, n_in):
            return
        for name, shape in layer.state_shapes(n_in).items():
            state = self.backend.to_numpy(self.layer_state[numbered(name, number)])
            if (state != layer.initial(name, tuple(shape), _draws_nothing)).any():
                return
        raise DataError(
            f"X: a network with {in_words(layer)} takes what it needs from the data of its first fit: fit it first"
        )

    def save(self, path: str | PathLike[str], force: bool = False) -> None:
        """Write a model file (see dnn.model_file). An existing one is replaced only with `force`."""
        from dnn import model_file

        model_file.save(self, path, force=force)

    # ------------------------------------------------------------------------------------- in words

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.parameters.shapes.values())

    @property
    def is_random(self) -> bool:
        """Whether a training step draws random numbers."""
        return any(layer.random for layer, *_ in walk(self.stack, self.layer_sizes[0]))

    def settings(self) -> dict[str, Any]:
        """What it was made with, beside the layer sizes and the layers."""
        names = ["output", "initializer", "seed", "input_scale", "target_scale", "members", "shared"]
        if not self.spelled_out:
            names = ["activation", "dropout", "norm", *names]
        return {"dtype": self.dtype.name, **{name: getattr(self, name) for name in names}}

    def __repr__(self) -> str:
        first = f"{self.layer_sizes[0]}, {list(self.layers)}" if self.spelled_out else str(list(self.layer_sizes))
        always, given = ("activation", "output", "initializer", "seed", "dtype", "input_scale"), self.settings()
        usual = {"dropout": 0.0, "norm": None, "target_scale": None, "members": 1, "shared": None}
        shown = [n for n in (*always, *usual) if n in given and (n in always or given[n] != usual[n])]
        settings = [first, *(f"{n}={given[n]!r}" for n in shown)]
        if self.loss is not None:
            settings.append(f"loss={_loss_in_words(self.loss)}")
        return f"Network({', '.join(settings)}, backend={self.backend.name!r})"

    def summary(self) -> str:
        """A table of the layers: outputs, parameters with their shapes, multiply-adds an example; dtype and backend."""
        rows = [("layer", "outputs", "parameters", "shapes", "multiply-adds")]
        for layer, number, n_in, depth in walk(self.stack, self.layer_sizes[0]):
            shapes = {numbered(name, number): shape for name, shape in layer.shapes(n_in).items()}
            counted = self.copies * sum(math.prod(shape) for shape in shapes.values())
            listed = "  ".join(f"{name} {shape}" for name, shape in shapes.items())
            macs = self.copies * layer.macs(n_in)
            outputs = "" if layer.children else str(layer.n_out(n_in))
            rows.append(
                ("  " * depth + in_words(layer), outputs, f"{counted:,}" if counted else "", listed,
                 f"{macs:,}" if macs else "")
            )  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:<{widths[3]}}  {e:>{widths[4]}}".rstrip()
            for a, b, c, d, e in rows
        ]
        megabytes = self.parameters.flat.nbytes / 1e6
        of = f"{self.members} members{f' ({self.shared})' if self.shared else ''}, " if self.members > 1 else ""
        lines.append(
            f"{self.output} output, {of}{self.n_parameters:,} parameters, {self.dtype.name}, {megabytes:.2f} MB, "
            f"backend {self.backend.name}"
        )
        return "\n".join(lines)


def in_words(layer: Layer) -> str:
    """The class of a layer with its activation or rate, for a line of a table."""
    layer = getattr(layer, "dense", layer)
    for name in ("activation", "name", "rate", "kind"):
        if getattr(layer, name, None) is not None:
            return f"{type(layer).__name__} {getattr(layer, name)}"
    return type(layer).__name__


def _loss_in_words(loss: str | Loss) -> str:
    """By its name where it has one: a network from its file has the loss itself."""
    try:
        named = loss_config(loss)
    except ValueError:  # not registered
        named = {}
    return repr(named if isinstance(named, str) else loss)


def _draws_nothing(initializer: str | float | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)


# ----------------------------------------------------------------------------------------- settings


def _setting(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def specified(
    layer_sizes: Any, layers: Any, activation: Any, initializer: Any, dropout: Any, norm: Any
) -> tuple[Layer, ...]:
    """The layers that the settings describe; ValueError or TypeError where they describe none."""
    if layers is not None:
        if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
            raise TypeError(f"layers must be a list of layers such as [dnn.Dense(64, 'relu')], got {layers!r}")
        for place, layer in enumerate(layers, start=1):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers: layer {place} must be a layer such as dnn.Dense(64), got {layer!r}")
        given = {"activation": activation, "dropout": dropout or None, "norm": norm}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} is for networks given by their sizes: write it into the layers")
        return tuple(layers)
    if isinstance(layer_sizes, (int, np.integer)) and not isinstance(layer_sizes, bool):
        raise TypeError(
            f"layer_sizes must be a list such as [784, 256, 10], or have layers after it, got {layer_sizes}"
        )
    _check_sizes(layer_sizes)
    hidden = len(layer_sizes) - 2
    activation = "relu" if activation is None else activation
    activations = _each("activation", activation, hidden, str)
    rates, norms = _each("dropout", dropout, hidden, (int, float)), _each("norm", norm, hidden, (str, type(None)))
    drawn = _each("initializer", initializer, hidden + 1, (str, int, float), "dense")
    own = drawn if isinstance(initializer, (list, tuple)) else [None] * (hidden + 1)
    for name in (activation,) if isinstance(activation, str) else activations:
        check_choice("activation", name, ACTIVATIONS)
    found: list[Layer] = []
    for size, name, rate, kind, initial in zip(layer_sizes[1:-1], activations, rates, norms, own[:-1], strict=True):
        if kind is not None:
            check_choice("norm", kind, NORMS)
        if kind is None:
            found.append(Dense(size, name, initializer=initial))
        else:  # whatever is added for all of the batch, its mean takes away again
            found += [Dense(size, bias=kind != "batch", initializer=initial), NORMS[kind](), Activation(name)]
        if rate != 0:
            try:
                found.append(Dropout(rate))
            except (TypeError, ValueError) as wrong:
                raise type(wrong)(str(wrong).replace("Dropout: rate", "dropout")) from None
    return (*found, Dense(layer_sizes[-1], initializer=own[-1]))


def _each(name: str, value: Any, count: int, kinds: Any, of: str = "hidden") -> list[Any]:
    """One for each layer; ValueError where a list has another number of them."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} must be one for all {of} layers, or {count}, one for each; got {len(value)}: {list(value)!r}"
        )
    return list(value)


def sizes_of(n_in: int, layers: Sequence[Layer]) -> tuple[int, ...]:
    """The inputs, the units of the dense layers, and the outputs."""
    dense = [layer.units for layer, *_ in walk(layers, n_in) if isinstance(layer, Dense)]
    n_out = width_after(layers, n_in)
    return (n_in, *(dense if dense and dense[-1] == n_out else [*dense, n_out]))


def check_settings(
    n_in: Any,
    layers: Sequence[Layer],
    *,
    output: Any,
    initializer: Any,
    seed: Any,
    dtype: Any,
    input_scale: Any,
    target_scale: Any,
    loss: Any,
    members: Any,
    shared: Any,
) -> None:
    """ValueError or TypeError where no network can be made of these settings; nothing is allocated."""
    check_at_least("layer_sizes: the number of inputs", n_in)
    check_choice("output", output, HEADS)
    for each in initializer if isinstance(initializer, (list, tuple)) else [initializer]:
        check_initializer(each)
    check_choice("dtype", _dtype_name(dtype), DTYPES)
    check_whole("seed", seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 4294967295, got {seed}")
    n_out, width = 0, int(n_in)
    for place, layer in enumerate(layers, start=1):
        if place > 1 and needs_data(layer, width):
            raise ValueError(f"layers: layer {place}, {in_words(layer)}, needs the data as it is: put it first")
        try:
            _check_weights(layer, width)
            width = n_out = layer.n_out(width)
        except ValueError as wrong:
            raise ValueError(f"layers: layer {place}: {wrong}") from None
    if output == "softmax" and n_out < 2:
        raise ValueError("output softmax needs at least 2 units, got 1: use output='sigmoid' for two classes")
    found = HEADS[output].loss if loss is None else checked_loss(loss)
    if not suits(found, output):
        fitting = ", ".join(name for name, known in LOSSES.items() if suits(known, output))
        raise ValueError(f"loss {loss!r} is not for output {output!r}: choose {fitting}, or another output")
    if n_out % (per_target := outputs_per_target(found)):
        raise ValueError(
            f"loss {loss!r} takes {per_target} outputs for each target, got {n_out} in all: "
            f"end with {per_target} units a target"
        )
    _check_scales(input_scale, target_scale, output, dtype, found)
    if code_columns(layers) and not isinstance(input_scale, (str, type(None))) and input_scale != 1:
        raise ValueError(f"input_scale {input_scale!r} would multiply codes of categories: leave it out, or 'standard'")
    check_at_least("members", members)
    if members > MOST_MEMBERS:
        raise ValueError(f"members must be at most {MOST_MEMBERS}, got {members}")
    if shared is not None:
        check_choice("shared", shared, ["tabm"])
        if members < 2:
            raise ValueError(f"shared={shared!r} is for several members: give members=, as in members=32")
        shared_by_members(layers, members)


def _check_weights(layer: Layer, n_in: int) -> None:
    for each, _, n, _ in walk([layer], n_in):
        shape = each.shapes(n).get("W", (1, 1))
        if len(shape) != 2:
            name = type(each).__name__
            raise ValueError(f"{name}: the weight W must be a matrix, got shape {tuple(shape)}: name it otherwise")


def _shared_name(what: str, name: str, first: Layer, second: Layer) -> ValueError:
    """Of two layers that have a parameter or state of one name; a user's own is to change it."""
    own, other = (first, second) if type(second).__module__.startswith("dnn.") else (second, first)
    fix = f"give {type(own).__name__} a {what} name of its own"
    return ValueError(f"layers: {type(own).__name__} and {type(other).__name__} both have a {what} {name!r}: {fix}")


def code_columns(layers: Sequence[Layer]) -> tuple[int, ...]:
    """The features that the first layer takes for codes of categories."""
    return tuple(layers[0].columns) if isinstance(layers[0], CategoricalEmbedding) else ()


def _check_scales(input_scale: Any, target_scale: Any, output: str, dtype: Any, loss: Loss) -> None:
    if isinstance(input_scale, str):
        check_choice("input_scale", input_scale, INPUT_SCALES)
    elif input_scale is not None:
        check_number("input_scale", input_scale)
        if not (math.isfinite(input_scale) and input_scale > 0):
            raise ValueError(f"input_scale must be a finite number above 0, got {input_scale!r}")
        check_rounded("input_scale", float(input_scale), np.dtype(dtype))
    if target_scale is not None:
        check_choice("target_scale", target_scale, TARGET_SCALES)
        if output != "linear":
            raise ValueError(f"target_scale is for output 'linear', not for {output!r}: leave it out")
        of_its_own = hasattr(loss, "answer") or hasattr(loss, "check_targets")
        if of_its_own and not isinstance(loss, GaussianNLL):
            raise ValueError(
                f"target_scale is not for the loss {type(loss).__name__}, whose targets and answers have units of "
                "their own: leave it out"
            )


def _dtype_name(dtype: Any) -> Any:
    try:
        return np.dtype(dtype).name
    except TypeError:
        return dtype


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

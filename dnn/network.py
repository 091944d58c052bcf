"""A network: its layers, its parameters, and what one does with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.activations import ACTIVATIONS
from dnn.backends import Backend, get_backend
from dnn.errors import DataError, check_choice
from dnn.heads import HEADS
from dnn.initializers import COURSE, Generator, weights
from dnn.layers import (
    Activation,
    Layer,
    learns,
    walk,
)
from dnn.layers.ensemble import shared as shared_by_members
from dnn.losses import LOSSES, Loss, checked_loss, loss_config, outputs_per_target
from dnn.parameters import Parameters, in_order, numbered
from dnn.specification import as_setting, check_settings, code_columns, in_words, name_taken, sizes_of, specified
from dnn.state import TrainingState

if TYPE_CHECKING:
    from dnn.data.schema import Schema
    from dnn.training import History
    from dnn.unfinished import Unfinished

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
    schema        what makes numbers of a table's columns, as `dnn.Schema.learn` gives it: tables are then taken as they
                  are, in whatever order their columns come; the first size is `schema.width`

    `parameters["W1"]` is the device's view; assigning to it copies. `epochs` counts those trained so far, `classes`
    names the classes where a data file did, `feature_names` the features where X was a table; `history` is of the last
    fit, of one that was interrupted too.
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
        schema: Schema | None = None,
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
        if schema is not None and not hasattr(schema, "width"):
            raise TypeError(f"schema must be what dnn.Schema.learn(X) gives, got {schema!r:.100}")
        if schema is not None and schema.width != self.layer_sizes[0]:
            raise ValueError(
                f"the schema makes {schema.width} features of a row, and the network takes {self.layer_sizes[0]}: give "
                f"schema.width as its first size"
            )
        self.schema = schema
        self.spelled_out = layers is not None
        """Whether the layers were given one by one."""
        self.activation = as_setting("relu" if activation is None else activation) if layers is None else None
        self.dropout = None if self.spelled_out else as_setting(dropout)
        self.norm = None if self.spelled_out else as_setting(norm)
        self.output = output
        self.loss = loss
        self.loss_function = HEADS[output].loss if loss is None else checked_loss(loss)
        self.initializer = as_setting(initializer)
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
        self.history: History | None = None
        self.unfinished: Unfinished | None = None
        """The fit that the next call of `fit` goes on with: `dnn.resume` sets it."""
        self.run_folder: str | None = None
        """Where the checkpoints of this network are."""
        self.fit_record: Unfinished | None = None
        """What the last of them knows of its fit."""
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
                    raise name_taken(what, name, owners[name], layer)
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
                        with np.errstate(over="ignore"):  # the settings of a file may be too large for its dtype
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
        """Train on X, Y and return the History. The keywords are the fields of `dnn.training.FitSettings`.

        A network from `dnn.resume` goes on with the fit that has not ended, by the settings of that.
        """
        from dnn.training import FitSettings, Trainer

        unfinished = self.unfinished
        given = FitSettings.of(settings) if unfinished is None else unfinished.settings_with(self, settings)
        return Trainer(self, given, unfinished).fit(X, Y)

    def partial_fit(self, X: Any, Y: Any, **settings: Any) -> History:
        """One pass over X, Y, without a progress bar; by default with the optimizer of the last fit, and its state."""
        self.unfinished = None  # what is left of another fit is another matter
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

    def save(self, path: str | PathLike[str], force: bool = False, training_state: bool | None = None) -> None:
        """Write a model file (see dnn.model_file). An existing one is replaced only with `force`.

        With what a next fit goes on with, the optimizer's state above all, unless `training_state` is False.
        """
        from dnn import model_file

        model_file.save(self, path, force, training_state)

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


def _loss_in_words(loss: str | Loss) -> str:
    """By its name where it has one: a network from its file has the loss itself."""
    try:
        named = loss_config(loss)
    except ValueError:  # not registered
        named = {}
    return repr(named if isinstance(named, str) else loss)


def _draws_nothing(initializer: str | float | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)

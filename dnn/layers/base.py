"""What a layer is, and what it is given when it becomes part of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from dnn.backends import Array
from dnn.backends.plan import Plan, Value
from dnn.parameters import numbered
from dnn.schedules import SCHEDULES, Schedule

Shape = tuple[int, ...]
Backward = Callable[[Value], Value]
"""dX from dY; it leaves the gradients of the parameters with the `Place`."""


class Name(NamedTuple):
    """What a value of a plan is in the field's terms: Z2, or dW2; of which layer, counted as `walk` does from 1, and of
    which member, from 0."""

    tensor: str
    layer: int | None = None
    member: int | None = None


class Draw(Protocol):
    """Initial values of a parameter, in float64."""

    def __call__(self, initializer: str | float | None, shape: Shape) -> np.ndarray:
        """By the name of an initializer, None being the network's."""


@dataclass(frozen=True)
class Layer:
    """A description: it holds no arrays, so one object may stand in several networks.

    A subclass has its settings as fields and `bind`, and says by `shapes` which parameters it has. Parameters are named
    by the layer (W, gamma) and numbered within its `family`: the third dense layer has W3 and b3. No two layers of a
    network may have one of the same name and number.
    """

    family: ClassVar[str] = "layer"
    random: ClassVar[bool] = False
    """Whether it draws random numbers in training."""
    children: ClassVar[tuple[Layer, ...]] = ()
    """The layers inside it, in the order in which they are bound."""

    least_batch: ClassVar[int] = 1
    """The fewest examples of a batch from which it can learn."""
    takes_codes: ClassVar[bool] = False
    """Whether features are codes of categories: then it has to be the first layer."""
    exact_input: ClassVar[bool] = False
    """Whether as the first layer it needs X as it is, not rounded to the 16 bits that a step may compute in. Its Y has
    the dtype of the place where it is bound."""

    def n_out(self, n_in: int) -> int:
        """The number of outputs; ValueError where it cannot take so many inputs."""
        return n_in

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        """Its parameters. What is called W is a weight, a matrix: it comes first, decays, and is penalized."""
        return {}

    def state_shapes(self, n_in: int) -> Mapping[str, Shape]:
        """What it keeps beside parameters, such as running statistics. No gradient reaches it."""
        return {}

    def initial(self, name: str, shape: Shape, draw: Draw) -> np.ndarray | float:
        """What a parameter or a part of its state begins as."""
        return 0.0

    def learn(self, X: np.ndarray) -> Mapping[str, np.ndarray]:
        """State that is learned from the examples of the first fit, before it, by name; X (m, n_in) as the layer gets
        it. Only the first layer of a network may have such."""
        return {}

    def macs(self, n_in: int) -> int:
        """Multiply-adds of the products of one example's forward pass."""
        return 0

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        """Y of X (m, n_in), and the function that gives dX of dY when the plan gets there."""
        raise NotImplementedError


LAYERS: dict[str, type[Layer]] = {}
"""By the name that a model file keeps."""


def known_layer(kind: type[Layer]) -> type[Layer]:
    """Class decorator: networks of this layer can be saved."""
    LAYERS[kind.__name__] = kind
    return kind


class Owner(Protocol):
    """The step that a layer is bound in."""

    plan: Plan
    training: bool
    dtype: np.dtype
    """That products are computed in."""
    copy: int | None
    """The member of the network that it is, where each has weights of its own."""

    def parameter(self, name: str, member: int | None) -> Value: ...
    def gradient(self, name: str, value: Value, member: int | None) -> None: ...
    def state(self, name: str) -> Value: ...
    def set_state(self, name: str, value: Value) -> None: ...
    def factor(self, schedule: Schedule) -> Value | float: ...
    def key(self) -> tuple[int, int, Value]: ...


class Binding:
    """The layers of one network, or of one of its members, on their way into a plan."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._numbers: Counter[str] = Counter()
        self._places = 0

    def bind(self, layers: Sequence[Layer], X: Value) -> tuple[Value, Backward]:
        """Layer after layer, and their backward passes in reverse."""
        backwards: list[tuple[Place, Backward]] = []
        for layer in layers:
            self._numbers[layer.family] += 1
            self._places += 1
            place = Place(self, layer, self._numbers[layer.family], self._places)
            X, backward = layer.bind(place, X)
            place.name("Y", X)
            backwards.append((place, backward))

        def all_backwards(dY: Value) -> Value:
            for place, backward in reversed(backwards):
                dY = backward(dY)
                place.name("dX", dY)
            return dY

        return X, all_backwards


class Place:
    """What one layer is given: the plan, its parameters and state by its own names, and where its gradients go."""

    def __init__(self, binding: Binding, layer: Layer, number: int, place: int) -> None:
        self._binding, self._owner = binding, binding.owner
        self._number, self._place = number, place
        self.plan, self.training, self.dtype = self._owner.plan, self._owner.training, self._owner.dtype

    def call(self, function: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
        """The results of a pure function, as values of the plan."""
        return self.plan.call(function, *inputs, **settings)

    def parameter(self, name: str, member: int | None = None) -> Value:
        """A parameter; of one that has a part for each member, that part."""
        return self._owner.parameter(numbered(name, self._number), member)

    def gradient(self, name: str, value: Value, member: int | None = None) -> None:
        """Leave the gradient of a parameter, of its shape."""
        self.name(f"d{name}", value)
        self._owner.gradient(numbered(name, self._number), value, member)

    def state(self, name: str) -> Value:
        return self._owner.state(numbered(name, self._number))

    def set_state(self, name: str, value: Value) -> None:
        self.name(name, value)
        self._owner.set_state(numbered(name, self._number), value)

    def name(self, name: str, value: Value) -> Value:
        """Say what a value is, as Z or dZ: what is said of a divergence calls it so. Gives the value."""
        self.plan.name(value, Name(numbered(name, self._number), self._place, self._owner.copy))
        return value

    def factor(self, schedule: Schedule | None) -> Value | float:
        """What a schedule multiplies a setting by at this step: a scalar of the plan; 1 without a schedule."""
        return 1.0 if schedule is None else self._owner.factor(schedule)

    def random_key(self) -> tuple[int, int, Value]:
        """The seed, the place of the layer in its copy of the network, and the step: the key of its random numbers."""
        seed, copy, step = self._owner.key()
        return seed, copy * 65536 + self._place, step

    def bind(self, layers: Sequence[Layer], X: Value) -> tuple[Value, Backward]:
        """Layers inside this one."""
        return self._binding.bind(layers, X)


def walk(
    layers: Sequence[Layer], n_in: int, numbers: Counter[str] | None = None, depth: int = 0
) -> Iterator[tuple[Layer, int, int, int]]:
    """Every layer in the order of binding, those inside others included: (layer, its number, its n_in, its depth)."""
    numbers = Counter() if numbers is None else numbers
    for layer in layers:
        numbers[layer.family] += 1
        yield layer, numbers[layer.family], n_in, depth
        yield from walk(layer.children, n_in, numbers, depth + 1)
        n_in = layer.n_out(n_in)


def needs_data(layer: Layer, n_in: int) -> bool:
    """Whether it has to be the first layer: it learns from the examples, or takes codes."""
    return layer.takes_codes or learns(layer, n_in)


def learns(layer: Layer, n_in: int) -> bool:
    """Whether it has state that is learned from the examples of the first fit."""
    return type(layer).learn is not Layer.learn and bool(layer.state_shapes(n_in))


def width_after(layers: Sequence[Layer], n_in: int) -> int:
    """The number of outputs of the last layer."""
    for layer in layers:
        n_in = layer.n_out(n_in)
    return n_in


# -------------------------------------------------------------------------------------- in a model file


def layer_config(layer: Layer) -> dict[str, Any]:
    """A layer in numbers, names, lists and dictionaries; ValueError where its class is not `known_layer`."""
    kind = type(layer)
    if LAYERS.get(kind.__name__) is not kind:
        raise ValueError(f"a model file stores layers by name: decorate {kind.__name__} with dnn.layers.known_layer")
    return {"layer": kind.__name__, **{item.name: _plain(getattr(layer, item.name)) for item in fields(layer)}}


def layer_from_config(config: Any) -> Layer:
    """The layer of a configuration; ValueError or TypeError where it is none."""
    if not isinstance(config, dict) or config.get("layer") not in LAYERS:
        raise ValueError(f"expected a layer, one of {', '.join(LAYERS)}, got {config!r:.100}")
    kind = LAYERS[config["layer"]]
    settings = {name: value for name, value in config.items() if name != "layer"}
    if unknown := settings.keys() - {item.name for item in fields(kind)}:
        raise ValueError(f"{kind.__name__} has no setting {sorted(unknown)[0]!r}: the file is of a newer dnn")
    return kind(**{name: _thing(value) for name, value in settings.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Layer):
        return layer_config(value)
    if isinstance(value, Schedule):
        names = [name for name, kind in SCHEDULES.items() if kind is type(value)]
        if not names:
            own = type(value).__name__
            raise ValueError(f"a model file stores schedules by name: add {own} to dnn.schedules.SCHEDULES")
        return {"schedule": names[0], **asdict(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        raise ValueError(f"a model file stores layers of numbers and names, got a setting {value!r:.100}")
    return value


def _thing(value: Any) -> Any:
    if isinstance(value, dict):
        if "layer" in value:
            return layer_from_config(value)
        settings = dict(value)
        if (name := settings.pop("schedule", None)) not in SCHEDULES:
            raise ValueError(f"expected a schedule, one of {', '.join(SCHEDULES)}, got {name!r}")
        return SCHEDULES[name](**settings)
    if isinstance(value, list):
        return tuple(_thing(item) for item in value)
    return value


# ------------------------------------------------------------------------- pure functions that many need


def cast(xp: Any, X: Array, dtype: Any) -> Array:
    return X.astype(dtype)


def part_of_rows(xp: Any, X: Array, first: int, last: int) -> Array:
    return X[first:last]


def joined(xp: Any, *parts: Array, axis: int) -> Array:
    return parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=axis)

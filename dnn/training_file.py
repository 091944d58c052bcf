"""The state of a training as data sets of a model file, and the way back.

    training/state                      JSON: the optimizer, what early stopping and schedules know, the history, and of
                                        a checkpoint the fit that has not ended
    training/arrays/m/W1                the optimizer's arrays, the moving average, the sum of gradients, by parameter
    training/numbers/beta1_power        what is one number
    training/best/W1, training/best_state/mean1
                                        the weights of the best epoch, with what layers keep; likewise `trained` and
                                        `left`: those that the last fit trained, and those that it left in the network
    training/checksum                   sha256 of all of these and of the model's own checksum

A reader that does not know this group may leave it out: the model is whole without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from dnn.backends import Array, log_once
from dnn.callbacks import EarlyStopping, History
from dnn.configuration import from_config, of_numpy, to_config
from dnn.errors import ModelFileError
from dnn.network import Network
from dnn.optimizers import OPTIMIZERS, Optimizer
from dnn.parameters import Parameters
from dnn.schedules import SCHEDULES, PlateauState
from dnn.state import Keeps, TrainingState
from dnn.unfinished import Unfinished

GROUP = "training"
LARGEST_TEXT = 100_000_000
"""Bytes of the JSON that are read at most."""
COPIES = "best", "trained", "left"
"""Sets of weights that are kept beside those of the network."""
_EARLY_STOPPING: dict[str, type] = {"early_stopping": EarlyStopping}


def training_contents(network: Network, fit: Unfinished | None = None, copied: bool = False) -> dict[str, np.ndarray]:
    """The data sets, by name; none without a state. ValueError where something of it has no name to be stored by.

    `copied`: the arrays do not change when training goes on.
    """
    state = network.training_state
    if state is None:
        return {}
    found: dict[str, np.ndarray] = {}

    def add(name: str, array: Array, of: Parameters | None) -> None:
        host = network.backend.to_numpy(array)
        host = host.copy() if copied and host is array else host
        if of is None:
            found[f"{GROUP}/numbers/{name}"] = host
        else:
            found.update({f"{GROUP}/{name}/{part}": view for part, view in of.named(host).items()})

    for name, array in state.arrays.items():
        if name in ("weights", "learning_rate"):  # made from theta; in the text
            continue
        if name in state.of_parameters:
            add(f"arrays/{name}", array, network.parameters)
        else:
            add(name, array, None)
    for name in COPIES:
        if (copy := state.after.get(name)) is not None:
            add(name, copy["theta"], network.parameters)
            if "layer_state" in copy:
                add(f"{name}_state", copy["layer_state"], network.layer_state)
    try:
        text = json.dumps(_described(network, state, fit), default=of_numpy).encode()
    except TypeError as cause:  # a callback may have put anything into the history
        raise ValueError(f"its state of training, or its history, cannot be stored: {cause}") from None
    return {f"{GROUP}/state": np.array(text), **found}


def _described(network: Network, state: TrainingState, fit: Unfinished | None) -> dict[str, Any]:
    after = state.after
    stopping, plateau = after.get("early_stopping"), after.get("plateau")
    schedules, per_epoch = after.get("schedules", (None, None))
    return {
        "optimizer": to_config(state.optimizer, OPTIMIZERS, "dnn.optimizers.OPTIMIZERS"),
        "precision": state.precision,
        "learning_rate": state.learning_rate,
        "keeps": asdict(state.keeps),
        "early_stopping": None if stopping is None else to_config(stopping, _EARLY_STOPPING, ""),
        "plateau": None if plateau is None else _of_schedule(plateau),
        "schedules": None if schedules is None else [_of_schedule(schedule) for schedule in schedules],
        "per_epoch": per_epoch,
        "copies": [name for name in COPIES if after.get(name) is not None],
        "plain": {name: after[name] for name in _PLAIN if name in after},
        "history": None if network.history is None else network.history.config(),
        "fit": None if fit is None else fit.config(),
    }


_PLAIN = "best_value", "best_epoch", "waited", "plateau_state", "data", "averages"


def _of_schedule(schedule: Any) -> dict[str, Any]:
    return to_config(schedule, SCHEDULES, "dnn.schedules.SCHEDULES")


def checksum(contents: Mapping[str, np.ndarray], of_model: str) -> str:
    """Of everything in the group, names and shapes included, and of the model's own checksum."""
    found = hashlib.sha256(of_model.encode())
    for name in sorted(contents):
        if name.startswith(f"{GROUP}/") and name != f"{GROUP}/checksum":
            array = contents[name]
            found.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


# ------------------------------------------------------------------------------------------ the way back


class Stored:
    """What the text of a file says of a training, checked; `shapes` are those of the arrays that have to be there."""

    def __init__(self, text: bytes, network: Network) -> None:
        """ValueError, TypeError or KeyError where the text says nothing of the kind."""
        given = json.loads(text)
        if not isinstance(given, dict):
            raise TypeError(f"expected a dictionary, got {given!r:.100}")
        self.optimizer: Optimizer = from_config(given["optimizer"], OPTIMIZERS, "optimizer")
        self.precision = given["precision"]
        if not isinstance(self.precision, str | None):
            raise TypeError(f"precision {self.precision!r:.100}")
        self.learning_rate = float(given["learning_rate"])
        self.keeps = Keeps(**{name: bool(value) for name, value in given["keeps"].items()})
        self.after: dict[str, Any] = _plain_after(given["plain"])
        for name, kinds in (("early_stopping", _EARLY_STOPPING), ("plateau", SCHEDULES)):
            self.after[name] = None if given[name] is None else from_config(given[name], kinds, name)
        if given["schedules"] is not None:
            schedules = [from_config(each, SCHEDULES, "schedules") for each in given["schedules"]]
            self.after["schedules"] = schedules, int(given["per_epoch"])
        self.copies = [name for name in COPIES if name in given["copies"]]
        self.history = None if given["history"] is None else History.from_config(given["history"])
        self.fit = None if given["fit"] is None else Unfinished.from_config(given["fit"])
        self.shapes = self._expected(network)

    def _expected(self, network: Network) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        shapes, state_shapes, dtype = network.shapes, network.state_shapes, network.dtype
        found: dict[str, tuple[tuple[int, ...], np.dtype]] = {}

        def add(name: str, of: Mapping[str, tuple[int, ...]]) -> None:
            found.update({f"{GROUP}/{name}/{part}": (shape, dtype) for part, shape in of.items()})

        keeps = self.keeps
        real: np.dtype = np.dtype(np.float64)
        whole: np.dtype = np.dtype(np.int64)
        kept = [name for name, asked in (("average", keeps.average), ("gradients", keeps.gradients)) if asked]
        for name in (*self.optimizer.arrays, *kept):
            add(f"arrays/{name}", shapes)
        numbers = dict.fromkeys(self.optimizer.scalars, real)
        numbers |= {name: whole for name, asked in (("updates", keeps.updates), ("steps", keeps.steps)) if asked}
        numbers |= {"examples": real} if keeps.gradients else {}
        numbers |= {"loss_scale": dtype, "good_steps": whole} if self.precision == "float16" else {}
        found.update({f"{GROUP}/numbers/{name}": ((1,), kind) for name, kind in numbers.items()})
        for name in self.copies:
            add(name, shapes)
            add(f"{name}_state", state_shapes)
        return found

    def give(self, network: Network, contents: Mapping[str, np.ndarray]) -> None:
        """Make it the network's."""
        state = network.training_state = TrainingState(self.optimizer, network.parameters, self.keeps)
        backend = network.backend
        for name in self.shapes:
            _, group, own, *_ = name.split("/")
            if group == "numbers":
                state.arrays[own] = backend.zeros(1, contents[name].dtype)
                state.arrays[own][...] = backend.asarray(contents[name])
        for name in state.of_parameters & state.arrays.keys():
            _fill(network.parameters, state.arrays[name], contents, f"{GROUP}/arrays/{name}")
        state.precision, state.learning_rate, state.after = self.precision, self.learning_rate, dict(self.after)
        for name in self.copies:
            state.after[name] = copy = {"theta": backend.zeros(network.parameters.flat.shape, network.dtype)}
            _fill(network.parameters, copy["theta"], contents, f"{GROUP}/{name}")
            if network.layer_state:
                copy["layer_state"] = backend.zeros(network.layer_state.flat.shape, network.dtype)
                _fill(network.layer_state, copy["layer_state"], contents, f"{GROUP}/{name}_state")
        network.history = self.history


def _fill(parameters: Parameters, flat: Array, contents: Mapping[str, np.ndarray], group: str) -> None:
    for part, view in parameters.named(flat).items():
        view[...] = parameters.backend.asarray(contents[f"{group}/{part}"])


def _plain_after(given: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("best_epoch", "waited"):
            found[name] = int(value)
        elif name == "best_value":
            found[name] = float(value)
        elif name == "averages":
            found[name] = bool(value)
        elif name == "data":
            found[name] = [int(number) for number in value]
        elif name == "plateau_state":
            best, bad, factor = value
            found[name] = PlateauState(None if best is None else float(best), int(bad), float(factor))
        else:
            raise ValueError(f"there is no {name!r:.100}")
    return found


def stored_training(path: str, text: bytes, network: Network, strict: bool = False) -> Stored | None:
    """What the file says; None, with a line in the log, where this dnn cannot go on with it.

    ModelFileError instead where `strict`.
    """
    try:
        return Stored(text, network)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as cause:
        message = f"{path}: its state of training cannot be used: {' '.join(str(cause).split())}"
        if strict:
            raise ModelFileError(message) from None
        log_once(f"{message}; the model is as it should be, and a fit begins with a new optimizer")
        return None


def not_finite(contents: Mapping[str, np.ndarray]) -> str | None:
    """The first data set with nan or inf in it; the scale of a constant feature, or a number that an optimizer begins
    with, may be infinite."""
    for name, array in contents.items():
        may_be = name.startswith((f"{GROUP}/numbers/", "statistics/"))
        if array.dtype.kind == "f" and not (~np.isnan(array) if may_be else np.isfinite(array)).all():
            return name
    return None

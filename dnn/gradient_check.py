"""Is the gradient of a network right? Its backward pass against differences of its loss, in float64.

The network is copied to float64, and its training step, operation by operation, gives the loss and the gradient of one
batch. Dropout's mask is that of one step, and batch norm takes the batch's own statistics. Penalties (l1, l2) are no
part of it. Of every parameter, along random directions over all of it and along single coordinates,

    D(h) = (L(θ + h v) − L(θ − h v)) / 2h,    slope = (4 D(h/2) − D(h)) / 3    (Richardson), an error of O(h⁴),

is compared with the gradient times v: |slope − g·v| / max(|slope|, |g·v|, floor) is at most the tolerance. The floor is
what rounding adds to the slope, over the tolerance. A backward that is right is off by about 1e-9; float64 leaves room
for 1e-6, and hardly any mistake is as small.

A kink, such as relu's at 0, has no slope. It is one where D(h) and D(h/2) differ, or the slopes from the left and from
the right do not meet as h shrinks, for every h. That is decided by the losses alone, never by the gradient, so a wrong
backward cannot pass for one. Checks at kinks count neither way. Where they are most of a parameter's, as in a new relu
network with an example that no unit answers to, it is checked again with all parameters moved a little, by about NUDGE;
where that leaves kinks too, as of a function that jumps, it could not be checked, and has not passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dnn.batches import in_place
from dnn.data import Examples, prepare
from dnn.data.weights import class_weights, with_weights
from dnn.errors import NonFiniteLossError, check_at_least
from dnn.inference import check_finite
from dnn.network import Network
from dnn.parameters import Parameters
from dnn.settings import FitSettings
from dnn.step import GRADIENTS, IN_PLACE, Step
from dnn.training import Trainer

__all__ = ["GradientCheck", "ParameterCheck", "gradient_check"]

TOLERANCE = 1e-6
STEPS = 1e-4, 1e-5, 1e-6
"""h over max(1, |θ|). The first between whose ends there is no kink is taken: the larger, the less rounding matters."""
DIRECTIONS = 2
ROUNDING = 16.0
"""Errors of a loss, over h, that a slope or the difference of two may be off by."""
NUDGE = 0.01
"""Over max(1, |θ|), what parameters are moved by, away from kinks."""
RIGHT, NEARBY, NO_GRADIENT, WRONG, NOT_CHECKED = "right", "right nearby", "no gradient", "wrong", "not checked"


@dataclass(frozen=True)
class ParameterCheck:
    """What was found of one parameter.

    error       the largest relative error of its checks, at `coordinate`, None being a direction over all of it
    numeric     the slope there; analytic: what the backward pass says
    checks      how many there were, with `kinks` of them
    verdict     right, wrong; no gradient: all is 0 but for rounding; right nearby: most checks are at kinks, and beside
                these it is right; not checked: beside these there are kinks too
    """

    name: str
    shape: tuple[int, ...]
    error: float
    coordinate: tuple[int, ...] | None
    numeric: float
    analytic: float
    checks: int
    kinks: int
    verdict: str

    @property
    def passed(self) -> bool:
        return self.verdict in (RIGHT, NEARBY, NO_GRADIENT)


@dataclass(frozen=True)
class GradientCheck:
    """The outcome: true if every parameter has passed. Printed, a table."""

    rows: tuple[ParameterCheck, ...]
    loss: float
    examples: int
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        table = [("parameter", "shape", "error", "at", "numeric", "analytic", "checks", "kinks", "verdict")]
        for row in self.rows:
            at = "direction" if row.coordinate is None else str(list(row.coordinate))
            measured = (f"{row.error:.1e}", at, f"{row.numeric:.6g}", f"{row.analytic:.6g}")
            if row.verdict == NOT_CHECKED:
                measured = ("", "", "", "")
            table.append((row.name, str(row.shape), *measured, str(row.checks), str(row.kinks), row.verdict))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
        failed = {what: [row.name for row in self.rows if row.verdict == what] for what in (WRONG, NOT_CHECKED)}
        verdict = "; ".join(f"{what}: {', '.join(names)}" for what, names in failed.items() if names)
        lines.append(
            f"loss {self.loss:.6g} of {self.examples} examples, float64, tolerance {self.tolerance:g}: "
            f"{verdict or 'every gradient is right'}"
        )
        return "\n".join(line.rstrip() for line in lines)


def gradient_check(
    network: Network,
    X: Any,
    Y: Any,
    *,
    sample_weight: Any = None,
    class_weight: Mapping[Any, float] | str | None = None,
    missing_targets: str = "error",
    examples: int = 32,
    coordinates: int = 10,
    seed: int = 0,
) -> GradientCheck:
    """Whether backward is the derivative of forward and loss, for every parameter. The network stays as it is.

    X, Y, weights and missing_targets are as in `fit`; the batch has at most `examples` of them, chosen by the seed.
    `coordinates` of every parameter are checked one by one: that of the largest gradient, and others by the seed.
    """
    if not isinstance(network, Network):
        raise TypeError(f"gradient_check takes a network, got {type(network).__name__}")
    most, coordinates = check_at_least("examples", examples), check_at_least("coordinates", coordinates)
    check_at_least("seed", seed, 0)
    settings = FitSettings(
        sample_weight=sample_weight, class_weight=class_weight, missing_targets=missing_targets, verbose=False
    )
    with network.backend.stream(), np.errstate(all="ignore"):
        check_finite(network)
        twin = _in_float64(network)
        batch = _batch(twin, X, Y, settings, most, np.random.default_rng([seed, 0]))
        probe = _Probe(twin, batch, np.random.default_rng([seed, 1]))
        loss, place = probe.loss / twin.copies, {name: place for place, name in enumerate(twin.parameters)}

        def check(name: str) -> ParameterCheck:
            return _checked(probe, name, coordinates, np.random.default_rng([seed, 2, place[name]]))

        rows = {name: check(name) for name in twin.parameters}
        at_kinks = [row for row in rows.values() if row.verdict == NOT_CHECKED]
        if at_kinks:
            probe.nudge(np.random.default_rng([seed, 3]))
        for row in at_kinks:
            nearby = check(row.name)
            verdict = NEARBY if nearby.verdict == RIGHT else nearby.verdict
            rows[row.name] = replace(nearby, kinks=row.kinks, verdict=verdict)
    return GradientCheck(tuple(rows.values()), loss, batch.m)


def _in_float64(network: Network) -> Network:
    """The same network, with parameters and state of its own in float64. Data is still prepared in its old dtype."""
    twin = Network.__new__(Network)
    twin.__dict__.update(network.__dict__)
    twin.statistics, twin.training_state = dict(network.statistics), None
    for name in ("parameters", "layer_state"):
        old: Parameters = getattr(network, name)
        new = Parameters(network.backend, old.shapes, np.float64)
        new.flat[...] = old.flat
        setattr(twin, name, new)
    return twin


def _batch(twin: Network, X: Any, Y: Any, settings: FitSettings, most: int, generator: np.random.Generator) -> Examples:
    """Examples as a fit prepares them, at most so many, on the device and in float64; from here on the twin is too."""
    backend = twin.backend
    found = prepare(twin, X, Y, fitting=True, missing=settings.missing_targets == "mask")
    rows = np.arange(found.m)
    of_classes = class_weights(twin, with_weights(twin, found, settings.sample_weight), settings.class_weight, rows)
    found = with_weights(twin, found, settings.sample_weight, of_classes)
    Trainer(twin, settings)._learn(found, rows)
    if found.weights is not None:  # examples without any weight have no gradient
        rows = rows[backend.to_numpy(found.weights).any(axis=1)]
    if len(rows) > most:
        rows = np.sort(generator.choice(rows, most, replace=False))
    twin.dtype = np.dtype(np.float64)
    found = in_place(backend, found, rows, twin.dtype)
    wide = {
        name: array.astype(np.float64)
        for name, array in found.arrays().items()
        if array is not None and array.dtype.kind == "f"
    }
    return replace(found, **wide)


class _Probe:
    """The loss and the gradient of one batch, and the loss with other parameters.

    Of members with parameters of their own it is the sum of their losses: each learns from its own.
    """

    def __init__(self, network: Network, batch: Examples, generator: np.random.Generator) -> None:
        self._backend, self.parameters, self.copies = network.backend, network.parameters, network.copies
        steps = self._backend.zeros(1, np.int64)
        steps.fill(network.steps)  # which no run of this step counts on: every mask is the same
        self._step = Step(network, batch, batch.m, GRADIENTS, IN_PLACE, state={"steps": steps}).compile(False)
        self._measure(generator)

    def _measure(self, generator: np.random.Generator) -> None:
        self.loss = self._run()
        if not math.isfinite(self.loss):
            raise NonFiniteLossError(f"the loss is {self.loss} in float64: scale the data, or start from other weights")
        self._gradient = self._backend.to_numpy(self._step.array("grad")).copy()
        self.rounding = self._rounding(generator)

    def nudge(self, generator: np.random.Generator) -> None:
        """Move all parameters a little, at random."""
        theta = self._backend.to_numpy(self.parameters.flat)
        by = NUDGE * np.maximum(1, np.abs(theta)) * generator.standard_normal(theta.shape)
        self.parameters.flat[...] = self._backend.asarray(theta + by)
        self._measure(generator)

    def _run(self) -> float:
        self._step()
        return self.copies * float(self._backend.to_numpy(self._step.loss)[0])

    def _rounding(self, generator: np.random.Generator) -> float:
        """The error of a loss: what it changes by where the parameters change in their last bit."""
        theta, eps = self._backend.to_numpy(self.parameters.flat).copy(), float(np.finfo(np.float64).eps)
        found = eps * abs(self.loss)
        for _ in range(4):
            near = theta * (1 + eps * generator.integers(-1, 2, theta.shape))
            self.parameters.flat[...] = self._backend.asarray(near)
            found = max(found, abs(self._run() - self.loss))
        self.parameters.flat[...] = self._backend.asarray(theta)
        return found

    def gradient(self, name: str) -> np.ndarray:
        """As the backward pass gives it, flat."""
        start, size = self.parameters.extent(name)[0], math.prod(self.parameters.shapes[name])
        return self._gradient[start : start + size]

    def slope(self, name: str, theta: np.ndarray, v: np.ndarray, scale: float) -> tuple[float, float] | None:
        """The derivative of the loss along v, and the error that rounding leaves in it; None at a kink."""
        view = self.parameters[name]

        def loss_at(t: float) -> float:
            view[...] = self._backend.asarray((theta + t * v).reshape(view.shape))
            return self._run()

        try:
            return _slope(loss_at, self.loss, scale, self.rounding)
        finally:
            view[...] = self._backend.asarray(theta.reshape(view.shape))


def _slope(loss_at: Callable[[float], float], loss: float, scale: float, rounding: float) -> tuple[float, float] | None:
    """The derivative at 0 of a function that is `loss` there, and the error of rounding in it; None at a kink."""
    for step in STEPS:
        h = step * scale
        (slope, bend), (near_slope, near_bend) = (_differences(loss_at, loss, t) for t in (h, h / 2))
        noise = ROUNDING * rounding / h
        allowed = TOLERANCE / 4 * max(abs(slope), abs(near_slope)) + noise
        # right minus left slope is h L'' where there is no kink: twice that of h/2, less that of h, leaves its jump
        if abs(slope - near_slope) <= allowed and abs(2 * near_bend - bend) <= allowed:
            return (4 * near_slope - slope) / 3, noise
    return None


def _differences(loss_at: Callable[[float], float], loss: float, h: float) -> tuple[float, float]:
    """The mean of the slopes to the right and to the left, and right minus left."""
    right, left = (loss_at(h) - loss) / h, (loss - loss_at(-h)) / h
    return (right + left) / 2, right - left


def _checked(probe: _Probe, name: str, coordinates: int, generator: np.random.Generator) -> ParameterCheck:
    shape, g = probe.parameters.shapes[name], probe.gradient(name)
    theta = np.array(probe._backend.to_numpy(probe.parameters[name])).reshape(-1)
    worst: tuple[float, int | None, float, float] = 0.0, None, 0.0, 0.0
    found, kinks, nothing, checks = 0, 0, True, [*[None] * DIRECTIONS, *_coordinates(g, coordinates, generator)]
    for place in checks:
        if place is None:
            v = generator.standard_normal(theta.size)
            v /= np.linalg.norm(v)
            analytic, scale = float(np.dot(g, v)), max(1.0, float(np.abs(theta).max()))
        else:
            v = np.zeros(theta.size)
            v[place] = 1
            analytic, scale = float(g[place]), max(1.0, abs(float(theta[place])))
        slope = probe.slope(name, theta, v, scale)
        if slope is None:
            kinks += 1
            continue
        numeric, noise = slope
        nothing = nothing and max(abs(numeric), abs(analytic)) <= noise
        error = abs(numeric - analytic) / max(abs(numeric), abs(analytic), noise / TOLERANCE)
        error = error if math.isfinite(error) else math.inf
        if not found or error > worst[0]:
            worst = error, place, numeric, analytic
        found += 1
    error, place, numeric, analytic = worst
    if error > TOLERANCE or not np.isfinite(g).all():
        verdict = WRONG
    elif 2 * kinks > len(checks):
        verdict = NOT_CHECKED
    else:
        verdict = NO_GRADIENT if nothing else RIGHT
    at = None if place is None else tuple(map(int, np.unravel_index(place, shape)))
    return ParameterCheck(name, shape, error, at, numeric, analytic, len(checks), kinks, verdict)


def _coordinates(g: np.ndarray, count: int, generator: np.random.Generator) -> list[int]:
    """That of the largest gradient, and others by chance."""
    largest = int(np.argmax(np.abs(g)))
    others = np.delete(np.arange(g.size), largest)
    return [largest, *map(int, generator.permutation(others)[: count - 1])]

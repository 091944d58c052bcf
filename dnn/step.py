"""The plan of a step, for batches of one size.

    load      the rows of X and of the targets that are next in the order of the examples
    forward   A_0 = X;  Z_l = A_{l-1} W_lᵀ + b_l,  A_l = g_l(Z_l) for l = 1..L-1;  the logits are Z_L
    loss      its mean over the batch, the metric, and both added to the running totals
    backward  dZ_L from the loss;  for l = L..1: dA_{l-1}, dW_l, db_l from dZ_l;  dZ_{l-1} from dA_{l-1}
    update    θ and the optimizer's state from the gradients; the position in the order moves on by a batch

In 16 bits forward and backward work on a copy of θ, which the update writes along with θ, and give gradients of that
dtype; in float16 these are scaled, and a step in which one overflows changes nothing but the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn import functional
from dnn.activations import ACTIVATIONS, Activation
from dnn.backends import Array
from dnn.backends.plan import Buffer, Plan, Value
from dnn.data import Examples
from dnn.heads import HEADS
from dnn.network import Network
from dnn.optimizers import Optimizer
from dnn.precision import INTERVAL, compute_dtype

PREDICT, EVALUATE, GRADIENTS, TRAIN = "predict", "evaluate", "gradients", "train"
"""How far a step goes: to P; to the loss and the metric; to the gradients; to the update."""
IN_PLACE, GATHERED, FED = "in place", "gathered", "fed"
"""Where a batch comes from: it is all the examples, in their order, in the dtype that the step computes in; an `Order`
says which of them it is; its X, as the examples have it, is put into `X` before each run, and an `Order` says which its
targets are."""


@dataclass(frozen=True)
class Order:
    """Rows of the examples, (n,) int64, in the order to take them, and how many are taken, (1,) int64: on the device.

    A step takes its batch from `position` on and adds its size to it, so steps of two sizes can share an order, and
    nothing is written between them. The caller sets the position back before the rows end: no step checks it.
    """

    rows: Array
    position: Array


class Step:
    """A step for batches of `batch_size` of these examples; `compile` makes it something to call.

    A training step needs the optimizer and the arrays of its state, one that is not IN_PLACE an order.

    `loss` (1,) is the mean over the batch, taken before the update; `totals` (2,) are the sums of that mean and of the
    metric over the batches since `reset`. All arrays are None until the step is compiled.
    """

    def __init__(
        self,
        network: Network,
        examples: Examples,
        batch_size: int,
        goal: str,
        loading: str = GATHERED,
        optimizer: Optimizer | None = None,
        state: Mapping[str, Array] | None = None,
        precision: str | None = None,
        order: Order | None = None,
    ) -> None:
        self._network, self._backend = network, network.backend
        self.batch_size, self.goal = batch_size, goal
        self.plan = plan = Plan(precision if precision == "tf32" else None)
        self._dtype = compute_dtype(network.dtype, network.backend, precision)
        self._run: Callable[..., None] | None = None
        self._buffers: dict[str, Buffer] = {}
        if loading == IN_PLACE:
            X, Y = self._whole(examples)
            self._compute(X, Y, optimizer, state, precision)
        else:
            assert order is not None
            position = plan.array("position", order.position)
            rows = plan.call(functional.batch_rows, plan.array("order", order.rows), position, m=batch_size)
            self._buffers, X, Y = load(plan, examples, rows, loading, self._dtype)
            self._compute(X, Y, optimizer, state, precision)
            plan.call(_sum, position, batch_size, into=position)  # last: what reads it comes before

    # ----------------------------------------------------------------------------------- the plan

    def _compute(
        self,
        X: Value,
        Y: Value | None,
        optimizer: Optimizer | None,
        state: Mapping[str, Array] | None,
        precision: str | None,
    ) -> None:
        plan, network, goal = self.plan, self._network, self.goal
        theta = plan.array("theta", network.parameters.flat)
        weights = self._weights(theta, state)
        logits, saved = self._forward(X, weights)
        head, loss = HEADS[network.output], network.loss_function
        if goal == PREDICT:
            self._keep("P", plan.call(head.activation, logits))
            return
        Y_loss = plan.call(head.targets, Y, K=network.layer_sizes[-1])
        losses = plan.call(loss.losses, logits, Y_loss)
        P = plan.call(head.activation, logits)
        measured = plan.call(head.metric.measure, P, Y)
        self._accumulate(plan.call(functional.mean_loss, losses).reshape(1), measured)
        if goal == EVALUATE:
            return
        dZ = plan.call(_scaled, plan.call(loss.gradient, logits, Y_loss), factor=1 / losses.size)
        loss_scale = plan.array("loss_scale", state["loss_scale"]) if precision == "float16" and state else None
        if loss_scale is not None:
            dZ = plan.call(_scaled, dZ, loss_scale)
        grad = plan.buffer("grad", theta.shape, self._dtype, keeps=goal == GRADIENTS)
        self._buffers["grad"] = grad
        self._backward(plan.call(_cast, dZ, dtype=self._dtype), saved, weights, grad)
        if goal == TRAIN:
            assert state is not None and optimizer is not None
            self._update(optimizer, state, theta, weights, plan.read(grad), loss_scale)

    def _buffer(self, name: str, shape: tuple[int, ...] | int, dtype: Any) -> Buffer:
        self._buffers[name] = buffer = self.plan.buffer(name, shape, dtype)
        return buffer

    def _keep(self, name: str, value: Value) -> None:
        self.plan.store(self._buffer(name, value.shape, value.dtype), value)

    def _whole(self, examples: Examples) -> tuple[Value, Value | None]:
        plan = self.plan
        X = plan.read(plan.array("X", examples.X))
        return X, None if examples.targets is None else plan.read(plan.array("targets", examples.targets))

    def _weights(self, theta: Buffer, state: Mapping[str, Array] | None) -> Buffer:
        """θ in the dtype to compute in: a training's is kept right by its updates, any other is made here."""
        plan = self.plan
        if self._dtype == theta.dtype:
            return theta
        if self.goal == TRAIN:
            assert state is not None
            return plan.array("weights", state["weights"])
        weights = plan.buffer("weights", theta.shape, self._dtype, keeps=False)
        plan.call(_cast, theta, into=weights, dtype=self._dtype)
        return weights

    def _forward(self, X: Value, weights: Buffer) -> tuple[Value, list[dict[str, Any]]]:
        """The logits, and what each layer saves for its backward pass."""
        plan, network = self.plan, self._network
        saved: list[dict[str, Any]] = []
        A = X
        for layer, activation in enumerate([*network.activations, None], start=1):
            W, b = (plan.read(network.parameters.part(weights, f"{name}{layer}")) for name in "Wb")
            Z = plan.call(functional.linear_forward, A, W, b)
            kept: dict[str, Any] = {"X": A, "W": W, "Z": Z}
            if activation is not None:
                kept["activation"] = ACTIVATIONS[activation]
                A = kept["A"] = plan.call(kept["activation"].forward, Z)
            saved.append(kept)
        return plan.call(_cast, Z, dtype=network.dtype), saved

    def _accumulate(self, mean: Value, measured: Value) -> None:
        plan = self.plan
        self._keep("loss", mean)
        totals = self._buffer("totals", 2, np.float64)
        for place, value in enumerate((mean, plan.call(_total, measured))):
            part = totals.part(place, (1,))
            plan.call(_sum, part, value, into=part)

    def _backward(self, dZ: Value, saved: list[dict[str, Any]], weights: Buffer, grad: Buffer) -> None:
        """The gradients of every layer. The first layer's dX is not computed: nobody needs it."""
        plan, parameters = self.plan, self._network.parameters
        for layer in range(len(saved), 0, -1):
            kept = saved[layer - 1]
            dA, dW, db = plan.call(functional.linear_backward, dZ, kept["X"], kept["W"])
            plan.store(parameters.part(grad, f"W{layer}"), dW)
            plan.store(parameters.part(grad, f"b{layer}"), db)
            if layer > 1:
                below = saved[layer - 2]
                activation: Activation = below["activation"]
                dZ = plan.call(activation.backward, dA, *(below[name] for name in activation.saves))

    def _update(
        self,
        optimizer: Optimizer,
        state: Mapping[str, Array],
        theta: Buffer,
        weights: Buffer,
        grad: Value,
        loss_scale: Buffer | None,
    ) -> None:
        plan, dtype = self.plan, self._network.dtype
        finite = None
        if loss_scale is not None:
            finite = plan.call(_all_finite, grad)
            good_steps = plan.array("good_steps", state["good_steps"])
            scale, steps = plan.call(functional.next_loss_scale, loss_scale, good_steps, finite, interval=INTERVAL)
            grad = plan.call(_unscaled, grad, plan.read(loss_scale), finite, dtype=dtype)
            plan.store(loss_scale, scale)
            plan.store(good_steps, steps)
        else:
            grad = plan.call(_cast, grad, dtype=dtype)
        learning_rate = plan.array("learning_rate", state["learning_rate"], weak=True)
        places = [theta]
        places += [plan.array(name, state[name]) for name in optimizer.arrays]
        places += [plan.array(name, state[name], weak=True) for name in optimizer.scalars]
        before = [plan.read(place) for place in places]
        results = plan.call(optimizer.update, before[0], grad, learning_rate, *before[1:])
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(places):
            raise ValueError(
                f"{type(optimizer).__name__}.update must return theta and its state "
                f"({', '.join(place.name for place in places)}), got {len(results)} values"
            )
        if finite is not None:
            results = tuple(plan.call(_where, finite, *pair) for pair in zip(results, before, strict=True))
        if weights is not theta:
            places, results = [weights, *places], (plan.call(_cast, results[0], dtype=weights.dtype), *results)
        for place, new in zip(places, results, strict=True):
            plan.store(place, new)

    # -------------------------------------------------------------------------------------- at work

    def nbytes(self) -> int:
        """The device memory that compiling the step takes."""
        return self._backend.plan_bytes(self.plan)

    def compile(self, optimized: bool = True) -> Step:
        """Make the step something to call; `optimized`: as fast as the backend can, where it runs often enough."""
        self._run = self._backend.compile(self.plan) if optimized else self._backend.run_stepwise(self.plan)
        return self

    def __call__(self, times: int = 1) -> None:
        """Run it, so many times in a row."""
        assert self._run is not None
        if times == 1:
            self._run()
        else:
            self._run(times)

    def array(self, name: str) -> Array:
        """The array of that name: X, P, loss, totals or grad."""
        return self._buffers[name].array

    @property
    def loss(self) -> Array:
        return self.array("loss")

    @property
    def totals(self) -> Array:
        return self.array("totals")

    def reset(self) -> None:
        if "totals" in self._buffers:
            self.totals[...] = 0


def load(
    plan: Plan, examples: Examples, rows: Value, loading: str, dtype: np.dtype
) -> tuple[dict[str, Buffer], Value, Value | None]:
    """These rows of the examples, GATHERED or FED: what to fill before each run, X in `dtype`, and the targets."""
    buffers = {}
    if loading == GATHERED:
        source = plan.array("X", examples.X)
        X = plan.call(functional.load_batch, source, rows, scale=examples.scale, dtype=dtype)
    else:
        buffers["X"] = plan.buffer("X", (len(rows), examples.X.shape[1]), examples.X.dtype)
        X = plan.call(_converted, buffers["X"], scale=examples.scale, dtype=dtype)
    if examples.targets is None:
        return buffers, X, None
    targets = plan.array("targets", examples.targets)
    return buffers, X, plan.call(functional.load_batch, targets, rows, scale=None, dtype=targets.dtype)


# pure functions that only a step needs


def _converted(xp: Any, X: Array, scale: Any, dtype: Any) -> Array:
    return (X if scale is None else X.astype(scale.dtype) * scale).astype(dtype)


def _cast(xp: Any, a: Array, dtype: Any) -> Array:
    return a.astype(dtype)


def _scaled(xp: Any, a: Array, factor: Any) -> Array:
    return a * factor


def _sum(xp: Any, a: Array, b: Array) -> Array:
    return a + b


def _total(xp: Any, a: Array) -> Array:
    return xp.sum(a, dtype=np.float64).reshape(1)


def _where(xp: Any, condition: Array, a: Array, b: Array) -> Array:
    return xp.where(condition, a, b)


def _all_finite(xp: Any, grad: Array) -> Array:
    return xp.min(xp.isfinite(grad))


def _unscaled(xp: Any, grad: Array, loss_scale: Array, finite: Array, dtype: Any) -> Array:
    # of a power of two, the reciprocal is exact
    return xp.where(finite, grad.astype(dtype) * (1 / loss_scale), 0)

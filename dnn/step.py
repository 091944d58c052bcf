"""The plan of a step, for batches of one size.

    load      the rows of X and of the targets that are next in the order of the examples
    forward   layer after layer, from A_0 = X to the logits Z_L
    loss      its mean over the batch, the metric, and both added to the running totals
    backward  dZ_L from the loss;  then layer after layer in reverse: dX, and the gradients of the layer's parameters
    update    θ and the optimizer's state from the gradients (see dnn.updating); the position moves on by a batch

In 16 bits forward and backward work on a copy of θ, which the update writes along with θ, and give gradients of that
dtype; in float16 these are scaled, and a step in which one overflows changes nothing but the scale.

Members of a network have batches of their own: rows k m … (k+1) m of what is loaded are member k's. What is only
evaluated is the same for all, and the answer their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dnn import functional, updating
from dnn.backends import Array
from dnn.backends.plan import Buffer, Plan, Value
from dnn.backends.plan.graph import View
from dnn.data import Examples
from dnn.heads import HEADS
from dnn.layers.base import Backward, Binding, Name, cast, joined, part_of_rows
from dnn.network import Network
from dnn.optimizers import SGD, Optimizer
from dnn.precision import compute_dtype
from dnn.schedules import Schedule
from dnn.updating import Updating, plus, scaled

PREDICT, EVALUATE, GRADIENTS, ACCUMULATE, TRAIN = "predict", "evaluate", "gradients", "accumulate", "train"
"""How far a step goes: to P; to P, loss and metric; to the gradients; to their sum over batches; to the update."""
IN_PLACE, GATHERED, FED = "in place", "gathered", "fed"
"""Where a batch comes from: it is all the examples, in their order, in the dtype that the step computes in; an `Order`
says which of them it is; its X, as the examples have it, is put into `X` before each run, and an `Order` says which its
targets are."""


@dataclass(frozen=True)
class Order:
    """Rows of the examples in the order to take them, int64, and how many are taken, (1,) int64: on the device.

    `rows` (n,) has the n rows of a pass, of several members one after the other. A step takes its batch from `position`
    on and adds its size to it, so steps of two sizes can share an order, and nothing is written between them. The
    caller sets the position back before the rows end: no step checks it.
    """

    rows: Array
    position: Array


class Step:
    """A step for batches of `batch_size` of these examples; `compile` makes it something to call.

    A training step needs the optimizer and the arrays of its state, one that is not IN_PLACE an order.

    `loss` (1,) is the mean over the batch, taken before the update; `totals` are sums over the batches since `reset`:
    of that mean and of the metric; where examples have weights, of the losses times the weights, of the metric, of the
    weights and of those that the metric counts. All arrays are None until the step is compiled.
    """

    def __init__(
        self,
        network: Network,
        examples: Examples,
        batch_size: int,
        goal: str,
        loading: str = GATHERED,
        updating: Updating | Optimizer | None = None,
        state: Mapping[str, Array] | None = None,
        precision: str | None = None,
        order: Order | None = None,
    ) -> None:
        self._network, self._backend = network, network.backend
        self.batch_size, self.goal = batch_size, goal
        self.plan = plan = Plan(precision if precision == "tf32" else None)
        self._updating = Updating(updating) if isinstance(updating, Optimizer) else updating
        self._state = state
        self._dtype = compute_dtype(network.dtype, network.backend, precision)
        dtype = load_dtype(network, precision)
        self._run: Callable[..., None] | None = None
        self._buffers: dict[str, Buffer] = {}
        self._each_own = loading != IN_PLACE and goal in (TRAIN, ACCUMULATE)
        """Whether every member has a batch of its own."""
        if loading == IN_PLACE:
            read = [None if a is None else plan.read(plan.array(name, a)) for name, a in examples.arrays().items()]
            batch = Batch(*read)  # type: ignore[arg-type]
            self._compute(batch, precision)
        else:
            assert order is not None
            position = plan.array("position", order.position)
            members = network.members if self._each_own else 1
            rows = plan.call(
                functional.batch_rows, plan.array("order", order.rows), position, m=batch_size, members=members
            )
            self._buffers, batch = load(plan, examples, rows, loading, dtype)
            self._compute(batch, precision)
            plan.call(plus, position, batch_size, into=position)  # last: what reads it comes before

    # ----------------------------------------------------------------------------------- the plan

    def _compute(self, batch: Batch, precision: str | None) -> None:
        plan, network, goal = self.plan, self._network, self.goal
        theta = plan.array("theta", network.parameters.flat)
        weights = self._weights(theta)
        self._layer_state = plan.array("layer_state", network.layer_state.flat) if network.layer_state else None
        self._new_state: dict[str, tuple[Value, Value]] = {}
        plan.name(batch.X, Name("X"))
        grad = None
        if goal not in (PREDICT, EVALUATE):
            grad = self._buffer("grad", theta.shape, self._dtype, keeps=goal == GRADIENTS)
        logits, backward = self._forward(batch.X, weights, grad)
        head, loss, k = HEADS[network.output], network.loss_function, network.members
        answer = getattr(loss, "answer", head.activation)
        if goal in (PREDICT, EVALUATE):
            P = plan.call(answer, logits) if k == 1 else plan.call(_mean_answer, logits, answer=answer, k=k)
            if goal == PREDICT and k > 1:
                self._keep("spread", plan.call(_spread, logits, answer=answer, k=k))
            self._keep("P", P)
            if goal == PREDICT:
                return
        Y = batch.Y
        weight, counted = batch.weights, batch.counted
        if k > 1 and not self._each_own:
            Y, weight, counted = (None if a is None else plan.call(tiled, a, k=k) for a in (Y, weight, counted))
        Y_loss = plan.call(head.targets, Y, K=network.layer_sizes[-1])
        losses = plan.call(loss.losses, logits, Y_loss)
        plan.name(losses, Name("the loss"))
        if goal == EVALUATE:
            measured = self._measured(P, batch.Y)
        else:
            measured = self._measured(plan.call(answer, logits), Y)
            if k > 1:
                measured = plan.call(_per_member, measured, k=k)
        self._accumulate(losses, measured, weight, batch.counted if goal == EVALUATE else counted)
        if goal == EVALUATE:
            return
        assert grad is not None
        gradient = plan.call(loss.gradient, logits, Y_loss)
        plan.name(gradient, Name("the gradient of the loss"))
        if weight is None:
            dZ = plan.call(scaled, gradient, factor=network.copies / losses.size)
        else:
            dZ = plan.call(weighted_gradient, gradient, weight, losses_shape=losses.shape, copies=network.copies)
        state = self._state or {}
        loss_scale = plan.array("loss_scale", state["loss_scale"]) if precision == "float16" and state else None
        if loss_scale is not None:
            dZ = plan.call(scaled, dZ, loss_scale)
        self._backward(plan.call(cast, dZ, dtype=self._dtype), backward, grad)
        examples: Value | int = self.batch_size
        if weight is not None:
            examples = plan.call(_weight_of, weight)
        if goal == GRADIENTS:
            return
        if goal == ACCUMULATE:
            kept = updating.accumulate(plan, network, state, grad, examples, loss_scale, self._new_state)
        else:
            assert self._updating is not None
            made = updating.Update(plan, network, self._updating, state, theta, weights, loss_scale)
            kept = made.build(grad, examples, self._new_state)
        for name, new in kept.items():
            plan.store(self._state_part(name), new)
        if "steps" in state:
            steps = updating.plan_array(plan, "steps", state["steps"], weak=False)
            plan.call(plus, steps, 1, into=steps)

    def _buffer(self, name: str, shape: tuple[int, ...] | int, dtype: Any, keeps: bool = True) -> Buffer:
        self._buffers[name] = buffer = self.plan.buffer(name, shape, dtype, keeps=keeps)
        return buffer

    def _keep(self, name: str, value: Value) -> None:
        self.plan.store(self._buffer(name, value.shape, value.dtype), value)

    def _weights(self, theta: Buffer) -> Buffer:
        """θ in the dtype to compute in: a training's is kept right by its updates, any other is made here."""
        plan = self.plan
        if self._dtype == theta.dtype:
            return theta
        if self.goal in (TRAIN, ACCUMULATE):
            assert self._state is not None
            return plan.array("weights", self._state["weights"])
        weights = plan.buffer("weights", theta.shape, self._dtype, keeps=False)
        plan.call(cast, theta, into=weights, dtype=self._dtype)
        return weights

    def _forward(self, X: Value, weights: Buffer, grad: Buffer | None) -> tuple[Value, Backward]:
        """The logits, of all members one after the other, and the backward pass from them."""
        plan, network = self.plan, self._network
        copies, k = network.copies, network.members
        if network.shared is not None and not self._each_own:
            X = plan.call(tiled, X, k=k)
        found = []
        for copy in range(copies):
            own = X
            if copies > 1 and self._each_own:
                m = X.shape[0] // copies
                own = plan.call(part_of_rows, X, first=copy * m, last=(copy + 1) * m)
            found.append(Binding(_Owner(self, weights, grad, copy)).bind(network.stack, own))
        logits = [Z for Z, _ in found]
        Z = plan.call(joined, *logits, axis=0) if copies > 1 else logits[0]

        def backward(dZ: Value) -> Value:
            m = dZ.shape[0] // copies
            for copy, (_, of_copy) in enumerate(found):
                of_copy(plan.call(part_of_rows, dZ, first=copy * m, last=(copy + 1) * m) if copies > 1 else dZ)
            return dZ

        return plan.call(cast, Z, dtype=network.dtype), backward

    def _state_part(self, name: str) -> View:
        assert self._layer_state is not None
        base, _, member = name.partition("/")
        return self._network.layer_state.part(self._layer_state, base, int(member) if member else None)

    def _measured(self, P: Value, Y: Value | None) -> Value:
        """The running metric of each example or output, in the units of the targets."""
        network = self._network
        point = getattr(network.loss_function, "point", None)
        if point is not None:
            P = self.plan.call(point, P)
        if "target_factor" in network.statistics:
            # in float64: the square of a unit may be beyond float32
            factor = self.plan.array("target_factor", self._backend.asarray(network.statistics["target_factor"]))
            P, Y = (self.plan.call(scaled, self.plan.call(cast, a, dtype=np.float64), factor) for a in (P, Y))
        return self.plan.call(HEADS[network.output].metric.measure, P, Y)

    def _accumulate(self, losses: Value, measured: Value, weight: Value | None, counted: Value | None) -> None:
        """The mean loss of the batch, and the running totals."""
        plan = self.plan
        if weight is None:
            mean = plan.call(functional.mean_loss, losses).reshape(1)
            sums = [mean, plan.call(_total, measured)]
        else:
            total, weights = plan.call(functional.weighted_losses, losses, weight)
            mean = plan.call(functional.weighted_mean, total, weights)
            metric, examples = plan.call(functional.weighted_losses, measured, weight if counted is None else counted)
            # the metric is of a sum over outputs and a mean over members: so is what it is divided by
            outputs = measured.shape[1] * (self._network.members if self.goal != EVALUATE else 1)
            if outputs > 1:
                examples = plan.call(scaled, examples, 1 / outputs)
            sums = [total, metric, weights, examples]
        self._keep("loss", mean)
        totals = self._buffer("totals", len(sums), np.float64)
        for place, value in enumerate(sums):
            part = totals.part(place, (1,))
            plan.call(plus, part, value, into=part)

    def _backward(self, dZ: Value, backward: Backward, grad: Buffer) -> None:
        """The gradients of every layer. The first layer's dX becomes no part of the plan: nothing reads it."""
        backward(dZ)

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


class _Owner:
    """What the layers of one copy of a network are given."""

    def __init__(self, step: Step, weights: Buffer, grad: Buffer | None, copy: int) -> None:
        self._step, self._weights, self._grad = step, weights, grad
        self.copy = copy if step._network.copies > 1 else None
        self.plan, self.dtype = step.plan, step._dtype
        self.training = step.goal not in (PREDICT, EVALUATE)

    def parameter(self, name: str, member: int | None) -> Value:
        parameters = self._step._network.parameters
        return self.plan.read(parameters.part(self._weights, name, self.copy if member is None else member))

    def gradient(self, name: str, value: Value, member: int | None) -> None:
        assert self._grad is not None
        place = self._step._network.parameters.part(self._grad, name, self.copy if member is None else member)
        self.plan.store(place, value)

    def _state_name(self, name: str) -> str:
        return name if self.copy is None else f"{name}/{self.copy}"

    def state(self, name: str) -> Value:
        return self.plan.read(self._step._state_part(self._state_name(name)))

    def set_state(self, name: str, value: Value) -> None:
        self._step._new_state[self._state_name(name)] = value, self.state(name)

    def factor(self, schedule: Schedule) -> Value | float:
        step = self._step
        given = step._updating or Updating(SGD())
        now = updating.progress(self.plan, step._state or {}, given)
        return 1.0 if now is None else updating.factor_of(self.plan, schedule, now, given)

    def key(self) -> tuple[int, int, Value]:
        step = self._step
        assert step._state is not None, "a step that draws random numbers has a state that counts them"
        counter = updating.plan_array(self.plan, "steps", step._state["steps"], weak=False)
        return step._network.seed, self.copy or 0, self.plan.read(counter)


class Batch(NamedTuple):
    """What is computed with: X, the targets, the weights of the losses and those that the metric counts."""

    X: Value
    Y: Value | None = None
    weights: Value | None = None
    counted: Value | None = None


def load_dtype(network: Network, precision: str | None) -> np.dtype:
    """What X is loaded in: the dtype to compute in, or the network's where the first layer needs X as it is."""
    exact = network.stack[0].exact_input
    return network.dtype if exact else compute_dtype(network.dtype, network.backend, precision)


def load(plan: Plan, examples: Examples, rows: Value, loading: str, dtype: np.dtype) -> tuple[dict[str, Buffer], Batch]:
    """These rows of the examples, GATHERED or FED: what to fill before each run, and X in `dtype` with the rest."""
    buffers = {}
    if loading == GATHERED:
        source = plan.array("X", examples.X)
        X = plan.call(functional.load_batch, source, rows, scale=examples.scale, dtype=dtype)
    else:
        buffers["X"] = plan.buffer("X", (len(rows), examples.X.shape[1]), examples.X.dtype)
        X = plan.call(_converted, buffers["X"], scale=examples.scale, dtype=dtype)
    found = [X]
    for name, array in list(examples.arrays().items())[1:]:
        if array is not None:
            source = plan.array(name, array)
            array = plan.call(functional.load_batch, source, rows, scale=None, dtype=array.dtype)
        found.append(array)
    return buffers, Batch(*found)


# pure functions that only a step needs


def _converted(xp: Any, X: Array, scale: Any, dtype: Any) -> Array:
    return (X if scale is None else X.astype(scale.dtype) * scale).astype(dtype)


def _total(xp: Any, a: Array) -> Array:
    return xp.sum(a, dtype=np.float64).reshape(1)


def tiled(xp: Any, a: Array, k: int) -> Array:
    """The rows of a matrix, k times one after the other."""
    m = a.shape[0]
    return xp.take(a, xp.arange(k * m) % m, axis=0)


def _members(Z: Array, answer: Callable[..., Any], xp: Any, k: int) -> list[Array]:
    m = Z.shape[0] // k
    P = answer(xp, Z)
    return [P[member * m : (member + 1) * m] for member in range(k)]


def _mean_answer(xp: Any, Z: Array, answer: Callable[..., Any], k: int) -> Array:
    parts = _members(Z, answer, xp, k)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total * (1 / k)


def _spread(xp: Any, Z: Array, answer: Callable[..., Any], k: int) -> Array:
    parts, mean = _members(Z, answer, xp, k), _mean_answer(xp, Z, answer, k)
    total = (parts[0] - mean) * (parts[0] - mean)
    for part in parts[1:]:
        total = total + (part - mean) * (part - mean)
    return xp.sqrt(total * (1 / k))


def _per_member(xp: Any, measured: Array, k: int) -> Array:
    return measured.astype(np.float64) * (1 / k)


def weighted_gradient(
    xp: Any, gradient: Array, weights: Array, losses_shape: tuple[int, int], copies: int = 1
) -> Array:
    """dZ = w · gradient / Σ w, with the sum over the losses; weights (m, 1) or (m, K), several outputs a target.

    Of several copies of a network, whose rows stand one below the other, each has a sum of its own.
    """
    if copies > 1:
        m, K = losses_shape[0] // copies, losses_shape[1]
        parts = [slice(copy * m, (copy + 1) * m) for copy in range(copies)]
        return xp.concatenate([weighted_gradient(xp, gradient[part], weights[part], (m, K)) for part in parts], axis=0)
    m, K = losses_shape
    total = xp.sum(weights) * (K // weights.shape[1])
    factor = 1 / xp.where(total > 0, total, 1)
    if weights.shape[1] in (1, gradient.shape[1]):
        return gradient * (weights * factor)
    each = gradient.reshape(m * K, gradient.shape[1] // K) * (weights * factor).reshape(m * K, 1)
    return each.reshape(gradient.shape)


def _weight_of(xp: Any, weights: Array) -> Array:
    return xp.sum(weights, dtype=np.float64).reshape(1)

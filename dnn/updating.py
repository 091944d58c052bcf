"""From gradients to an update, as part of a plan.

scale     g ← g / S, and in float16 whether all are finite
sum       g ← (g + the gradients of the batches before) where several batches make one update
penalties g ← g + λ₁ sign W + λ₂ W, of weights
clip      g ← min(max(g, −c), c);  g ← g · min(1, c / ‖g‖) with the norm over all parameters
update    the optimizer's, with its weight decay, and a schedule's factor in the learning rate
bound     every unit's weights w ← w · min(1, c / ‖w‖)
average   θ̄ ← d θ̄ + (1 − d) θ
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dnn import functional
from dnn.backends import Array
from dnn.backends.plan import Buffer, Plan, Value
from dnn.backends.plan.graph import View
from dnn.layers import walk
from dnn.layers.base import cast
from dnn.network import Network
from dnn.optimizers import Optimizer
from dnn.parameters import is_weight
from dnn.precision import INTERVAL
from dnn.schedules import Schedule
from dnn.state import Keeps


@dataclass(frozen=True)
class Updating:
    """The optimizer, and what is done to gradients and parameters beside it.

    `per_epoch` updates make an epoch, and `epochs` are what a schedule without a length of its own takes.
    """

    optimizer: Optimizer
    l1: float = 0.0
    l2: float = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    max_norm: float | None = None
    schedule: Schedule | None = None
    decay_schedule: Schedule | None = None
    accumulate: int = 1
    moving_average: float | None = None
    per_epoch: int = 1
    epochs: float = 1.0


@dataclass
class Group:
    """A range of theta whose parameters are all updated alike."""

    first: int
    last: int
    rate: float
    decay: float
    penalized: bool
    matrices: list[tuple[str, int | None]] = field(default_factory=list)
    """Its parameters, with their members, where each is updated as a matrix."""

    def alike(self, other: Group) -> bool:
        """Whether both can be one group."""
        same = (self.rate, self.decay, self.penalized) == (other.rate, other.decay, other.penalized)
        return same and not self.matrices and not other.matrices


def groups_of(network: Network, updating: Updating) -> list[Group]:
    """Ranges of theta, in order: as few as there can be."""
    optimizer, parameters = updating.optimizer, network.parameters
    decays, penalizes = optimizer.weight_decay > 0, updating.l1 > 0 or updating.l2 > 0
    last = [name for name in parameters if is_weight(name)][-1:]
    found: list[Group] = []
    for name in parameters:
        rate, decay = optimizer.factor_of(name)
        group = Group(*parameters.extent(name), rate, decay if decays else 0.0, penalizes and is_weight(name))
        if optimizer.matrices and is_weight(name) and name not in last:
            members = len(parameters.shapes[name]) == 3
            group.matrices = [(name, k if members else None) for k in range(network.copies)]
        if found and found[-1].alike(group):
            found[-1].last = group.last
        else:
            found.append(group)
    return found


class Update:
    """An update on its way into a plan: `build` stores the new theta and state."""

    def __init__(
        self,
        plan: Plan,
        network: Network,
        updating: Updating,
        state: Mapping[str, Array],
        theta: Buffer,
        weights: Buffer,
        loss_scale: Buffer | None,
    ) -> None:
        self.plan, self.network, self.updating = plan, network, updating
        self.theta, self.weights, self.loss_scale = theta, weights, loss_scale
        self.buffers = {name: plan.array(name, state[name]) for name in updating.optimizer.arrays}
        self.scalars = {name: plan.array(name, state[name], weak=True) for name in updating.optimizer.scalars}
        self.state = state
        self.finite: Value | None = None
        self._last: list[tuple[Buffer, Value]] = []
        """What is stored when nothing reads what stood there any longer."""
        self.now = progress(plan, state, updating)

    def build(
        self, grad: Buffer, examples: Value | int, layer_state: Mapping[str, tuple[Value, Value]]
    ) -> dict[str, Value]:
        """`examples`: how many the gradients are the mean of.

        Gives the new states of layers, in float16 the old where a gradient is not finite.
        """
        plan, updating = self.plan, self.updating
        groups = groups_of(self.network, updating)
        if self.loss_scale is not None:
            self._find_finite(plan.read(grad))
        of_all = self._accumulated(examples)
        whole = [self._gradient(grad, of_all, group) for group in groups]
        if updating.clip_norm is not None:
            squares = [plan.call(_sum_of_squares, g) for g in whole]
            factor = plan.call(clip_norm, *squares, limit=updating.clip_norm)
            whole = [plan.call(scaled, g, factor) for g in whole]
        numbers: tuple[Value, ...] = ()
        for group, g in zip(groups, whole, strict=True):
            if group.matrices:
                self._matrices(group, g)
            else:
                numbers = self._group(group, g)
        for place, new in zip(self.scalars.values(), numbers, strict=bool(numbers)):
            plan.store(place, self._kept(new, plan.read(place)))
        if of_all is not None:
            for name in ("gradients", "examples"):
                place = plan_array(plan, name, self.state[name])
                plan.store(place, plan.call(_zeros, place))
        if updating.max_norm is not None:
            self._bound(updating.max_norm)
        self._count()
        for place, new in self._last:
            plan.store(place, new)
        return {name: self._kept(new, old) for name, (new, old) in layer_state.items()}

    def _kept(self, new: Value, old: Value) -> Value:
        """The new value; in float16 the old one where a gradient is not finite."""
        return new if self.finite is None else self.plan.call(_where, self.finite, new, old)

    def _find_finite(self, grad: Value) -> None:
        plan = self.plan
        assert self.loss_scale is not None
        self.finite = plan.call(_all_finite, grad)
        if self.updating.accumulate > 1:
            before = plan.call(_all_finite, plan_array(plan, "gradients", self.state["gradients"], weak=False))
            self.finite = plan.call(_both, self.finite, before)
        good_steps = plan.array("good_steps", self.state["good_steps"])
        self._scale = plan.read(self.loss_scale)
        next_scale = plan.call(functional.next_loss_scale, self._scale, good_steps, self.finite, interval=INTERVAL)
        self._last = list(zip((self.loss_scale, good_steps), next_scale, strict=True))

    def _plain(self, g: Value) -> Value:
        """A gradient in the parameters' dtype, without the loss scale."""
        dtype = self.network.dtype
        if self.finite is None:
            return self.plan.call(cast, g, dtype=dtype)
        return self.plan.call(_unscaled, g, self._scale, self.finite, dtype=dtype)

    def _accumulated(self, examples: Value | int) -> tuple[Buffer, Value | int, Value] | None:
        """The gradients of the batches before, the examples of this one, and the number of examples in all."""
        if self.updating.accumulate == 1:
            return None
        plan = self.plan
        gradients = plan_array(plan, "gradients", self.state["gradients"], weak=False)
        count = plan.read(plan_array(plan, "examples", self.state["examples"]))
        return gradients, examples, plan.call(plus, count, examples)

    def _gradient(self, grad: Buffer, before: tuple[Buffer, Value | int, Value] | None, group: Group) -> Value:
        plan, updating = self.plan, self.updating
        size = (group.last - group.first,)
        g = self._plain(plan.read(grad.part(group.first, size)))
        if before is not None:
            gradients, examples, total = before
            sums = plan.read(gradients.part(group.first, size))
            if self.finite is not None:
                sums = plan.call(_where, self.finite, sums, 0)
            g = plan.call(_joint, sums, g, examples, total)
        if group.penalized:
            g = plan.call(_penalized, g, plan.read(self.theta.part(group.first, size)), l1=updating.l1, l2=updating.l2)
        if updating.clip_value is not None:
            g = plan.call(_clipped, g, limit=updating.clip_value)
        return g

    def _rates(self, group: Group) -> tuple[Value, Value | None]:
        """The learning rate of a group, and 1 − α λ if its weights decay."""
        plan, updating, optimizer = self.plan, self.updating, self.updating.optimizer
        rate = plan.read(plan_array(plan, "learning_rate", self.state["learning_rate"]))
        if updating.schedule is not None:
            rate = plan.call(scaled, rate, factor_of(plan, updating.schedule, self.now, updating))
        if group.rate != 1:
            rate = plan.call(scaled, rate, group.rate)
        if not (optimizer.weight_decay and group.decay):
            return rate, None
        ratio = 1.0 if group.matrices else optimizer.rate_ratio
        decay: Any = optimizer.weight_decay * group.decay * ratio
        if updating.decay_schedule is not None:
            decay = plan.call(scaled, factor_of(plan, updating.decay_schedule, self.now, updating), decay)
        return rate, plan.call(_decay, rate, decay)

    def _group(self, group: Group, g: Value) -> tuple[Value, ...]:
        """Update a range; gives the new scalars of the optimizer."""
        plan, optimizer, size = self.plan, self.updating.optimizer, (group.last - group.first,)
        places = [self.theta.part(group.first, size)]
        places += [buffer.part(group.first, size) for buffer in self.buffers.values()]
        before = [*map(plan.read, places), *map(plan.read, self.scalars.values())]
        rate, decay = self._rates(group)
        theta = before[0] if decay is None else plan.call(scaled, before[0], decay)
        results = plan.call(optimizer.update, theta, g, rate, *before[1:])
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(before):
            names = ["theta", *self.buffers, *self.scalars]
            raise ValueError(
                f"{type(optimizer).__name__}.update must return theta and its state ({', '.join(names)}), "
                f"got {len(results)} values"
            )
        self._store(places, results, before)
        return tuple(results[len(places) :])

    def _store(self, places: Sequence[View], results: Sequence[Value], before: Sequence[Value]) -> None:
        """The new theta, what follows it, and what the optimizer keeps."""
        kept = [self._kept(new, old) for new, old in zip(results, before, strict=False)]
        if self.updating.max_norm is None:
            self._follow(places[0], kept[0])
        for place, new in zip(places, kept, strict=False):
            self.plan.store(place, new)

    def _follow(self, place: View, theta: Value) -> None:
        """Copies of theta at this place: in 16 bits the weights to compute with, and its moving average."""
        plan, decay = self.plan, self.updating.moving_average
        if self.weights is not self.theta:
            weights = self.weights.part(place.start, place.shape)
            plan.store(weights, plan.call(cast, theta, dtype=weights.buffer.dtype))
        if decay is not None:
            average = plan_array(plan, "average", self.state["average"], weak=False).part(place.start, place.shape)
            old = plan.read(average)
            plan.store(average, self._kept(plan.call(moving_average, old, theta, decay=decay), old))

    def _matrices(self, group: Group, g: Value) -> None:
        """Update hidden weight matrices, each for itself."""
        plan, parameters, optimizer = self.plan, self.network.parameters, self.updating.optimizer
        flat = plan.buffer("gradient of a matrix", g.shape, g.dtype, keeps=False)
        plan.store(flat, g)
        rate, decay = self._rates(group)
        for name, member in group.matrices:
            places = [parameters.part(buffer, name, member) for buffer in (self.theta, *self.buffers.values())]
            start, shape = places[0].start - group.first, places[0].shape
            before = [plan.read(place) for place in places]
            W = before[0] if decay is None else plan.call(scaled, before[0], decay)
            results = plan.call(optimizer.update_matrix, W, plan.read(flat.part(start, shape)), rate, *before[1:])
            self._store(places, results, before)

    def _bound(self, limit: float) -> None:
        plan, parameters = self.plan, self.network.parameters
        for name, shape in parameters.shapes.items():
            for member in range(shape[0]) if len(shape) == 3 else [None]:
                if is_weight(name):
                    place = parameters.part(self.theta, name, member)
                    W = plan.read(place)
                    plan.store(place, self._kept(plan.call(max_norm, W, limit=limit), W))
        self._follow(self.theta.whole(), plan.read(self.theta))

    def _count(self) -> None:
        if self.now is not None:
            updates = plan_array(self.plan, "updates", self.state["updates"])
            before = self.plan.read(updates)
            self.plan.store(updates, self._kept(self.plan.call(plus, before, 1), before))


def accumulate(
    plan: Plan,
    network: Network,
    state: Mapping[str, Array],
    grad: Buffer,
    examples: Value | int,
    loss_scale: Buffer | None,
    layer_state: Mapping[str, tuple[Value, Value]],
) -> dict[str, Value]:
    """Add the gradients of a batch, times its examples, to those of the batches before.

    Gives the new states of layers, in float16 the old where a gradient is not finite.
    """
    gradients = plan_array(plan, "gradients", state["gradients"], weak=False)
    count = plan_array(plan, "examples", state["examples"])
    g, new = plan.call(cast, grad, dtype=network.dtype), {name: new for name, (new, _) in layer_state.items()}
    if loss_scale is not None:
        g = plan.call(scaled, g, plan.call(_reciprocal, loss_scale))
        if layer_state:
            finite = plan.call(_all_finite, grad)
            new = {name: plan.call(_where, finite, *pair) for name, pair in layer_state.items()}
    plan.store(gradients, plan.call(_added, plan.read(gradients), g, examples))
    plan.store(count, plan.call(plus, plan.read(count), examples))
    return new


def plan_array(plan: Plan, name: str, array: Array, weak: bool = True) -> Buffer:
    """The number of the step of that name: one buffer, whoever asks."""
    found = next((buffer for buffer in plan.buffers if buffer.array is array), None)
    return plan.array(name, array, weak=weak) if found is None else found


def progress(plan: Plan, state: Mapping[str, Array], updating: Updating) -> Value | None:
    """How many epochs are done, with fractions; None where no schedule asks."""
    if "updates" not in state:
        return None
    updates = plan.read(plan_array(plan, "updates", state["updates"]))
    return plan.call(_quotient, updates, updating.per_epoch)


def factor_of(plan: Plan, schedule: Schedule, now: Value | None, updating: Updating) -> Value:
    assert now is not None
    return plan.call(schedule.factor, now, epochs=updating.epochs)


def scheduled(network: Network, updating: Updating) -> Iterator[Schedule]:
    """The schedules of a training, those of layers included."""
    given = [updating.schedule, updating.decay_schedule]
    given += [getattr(layer, "schedule", None) for layer, *_ in walk(network.stack, network.layer_sizes[0])]
    return (schedule for schedule in given if schedule is not None and not schedule.on_host)


def keeps_of(network: Network, updating: Updating) -> Keeps:
    """What a training of this network keeps beside the optimizer's state."""
    return Keeps(
        updates=any(True for _ in scheduled(network, updating)),
        steps=network.is_random,
        average=updating.moving_average is not None,
        gradients=updating.accumulate > 1,
    )


# pure functions of an update


def max_norm(xp: Any, W: Array, limit: float) -> Array:
    """w ← w · min(1, c / ‖w‖), for every unit's weights: Srivastava et al. 2014, section 5.1. W (n_out, n_in)."""
    norms = xp.sqrt(xp.sum(W * W, axis=1, keepdims=True))
    return W * xp.where(norms > limit, limit / norms, 1)


def moving_average(xp: Any, average: Array, theta: Array, decay: float) -> Array:
    """θ̄ ← d θ̄ + (1 − d) θ: Polyak and Juditsky 1992, with weights that fall exponentially."""
    return decay * average + (1 - decay) * theta


def clip_norm(xp: Any, *squares: Array, limit: float) -> Array:
    """min(1, c / (‖g‖ + 10⁻⁶)) from the sums of squares of all parts of g: Pascanu et al. 2013, algorithm 1."""
    total = squares[0]
    for more in squares[1:]:
        total = total + more
    return xp.minimum(limit / (xp.sqrt(total) + 1e-6), 1)


def scaled(xp: Any, a: Array, factor: Any) -> Array:
    return a * factor


def _quotient(xp: Any, a: Array, b: int) -> Array:
    return a / b


def plus(xp: Any, a: Array, b: Array) -> Array:
    return a + b


def _reciprocal(xp: Any, a: Array) -> Array:
    return 1 / a  # of a power of two: exact


def _both(xp: Any, a: Array, b: Array) -> Array:
    return xp.logical_and(a, b)


def _joint(xp: Any, gradients: Array, grad: Array, examples: Any, total: Any) -> Array:
    # where nothing weighs anything, there is no gradient
    share = (1 / xp.where(total > 0, total, 1)).astype(gradients.dtype)
    return (gradients + grad * _number(examples, gradients.dtype)) * share


def _added(xp: Any, gradients: Array, grad: Array, examples: Any) -> Array:
    return gradients + grad * _number(examples, gradients.dtype)


def _number(examples: Any, dtype: Any) -> Any:
    """Of a weighted batch it is an array in float64, which would decide the dtype of the sum."""
    return examples if isinstance(examples, int) else examples.astype(dtype)


def _zeros(xp: Any, a: Array) -> Array:
    return xp.zeros_like(a)


def _decay(xp: Any, rate: Any, decay: Any) -> Any:
    return 1 - rate * decay


def _penalized(xp: Any, grad: Array, W: Array, l1: float, l2: float) -> Array:
    if l1:
        grad = grad + l1 * xp.sign(W)
    return grad + l2 * W if l2 else grad


def _clipped(xp: Any, grad: Array, limit: float) -> Array:
    return xp.minimum(xp.maximum(grad, -limit), limit)


def _sum_of_squares(xp: Any, grad: Array) -> Array:
    return xp.sum(grad * grad)


def _where(xp: Any, condition: Array, a: Array, b: Array) -> Array:
    return xp.where(condition, a, b)


def _all_finite(xp: Any, grad: Array) -> Array:
    return xp.min(xp.isfinite(grad))


def _unscaled(xp: Any, grad: Array, loss_scale: Array, finite: Array, dtype: Any) -> Array:
    # of a power of two, the reciprocal is exact
    return xp.where(finite, grad.astype(dtype) * (1 / loss_scale), 0)

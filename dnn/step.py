"""A forward pass and a training step, every buffer bound once, for batches of one size.

    forward   A_0 = X;  A_l = g(A_{l-1} W_lᵀ + b_l)  for l = 1..L-1;  Z_L = A_{L-1} W_Lᵀ + b_L;  P and the loss
    backward  dZ_L = scale (P − Y);  for l = L..1: dW_l, db_l, dA_{l-1} from dZ_l;  dZ_{l-1} = dA_{l-1} g'(A_{l-1})
    update    θ from the gradients

In mixed precision the same on copies of θ in 16 bits, between a cast down and a cast up: see `precision`.

A step slices nothing, looks nothing up by name, allocates nothing and reads nothing back from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn import functional
from dnn.backends import Array
from dnn.outputs import OUTPUTS

if TYPE_CHECKING:
    from dnn.data import Examples
    from dnn.network import Network
    from dnn.optimizers import Update
    from dnn.precision import Mixed

ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "relu": (functional.linear_relu, functional.relu_backward),
    "tanh": (functional.linear_tanh, functional.tanh_backward),
    "sigmoid": (functional.linear_sigmoid, functional.sigmoid_backward),
}


class Forward:
    """From batches of these examples to the output's P, and to the loss where they have targets.

    `in_place`: the batch is all the examples, in their order, and is never loaded: X stays where it is, in the
    network's dtype, C-contiguous or the transpose of such. Each layer keeps one array: its activation is computed in
    place of Z. `precision` is that of the products; `mixed` has the parameters to work on, where not the network's own.
    """

    def __init__(
        self,
        network: Network,
        examples: Examples,
        batch_size: int,
        in_place: bool = False,
        precision: str | None = None,
        mixed: Mixed | None = None,
    ) -> None:
        backend, parameters = network.backend, network.parameters if mixed is None else mixed.parameters
        dtype = parameters.dtype
        self._xp: Any = backend.xp
        linear_activation, activation_backward = ACTIVATIONS[network.activation]
        self._gather = backend.fused(functional.gather)
        self._linear = backend.fused(functional.linear_forward, precision)
        self._linear_activation = backend.fused(linear_activation, precision)
        self._activation_backward = backend.fused(activation_backward)
        self.batch_size = batch_size
        self.rows = backend.zeros(batch_size, np.int64)
        self.in_place = in_place
        self._examples = examples
        self.X = examples.X if in_place else backend.empty((batch_size, network.layer_sizes[0]), dtype)
        as_it_is = examples.scale is None and examples.X.dtype == dtype
        self._unscaled = self.X if as_it_is else backend.empty(self.X.shape, examples.X.dtype)
        self._in_order = None if backend.owns(examples.X) else backend.asarray(np.arange(batch_size))
        scratch = backend.empty(batch_size * max(network.layer_sizes[1:]), dtype)
        self._layers = []
        A_prev = self.X
        for layer, n_out in enumerate(network.layer_sizes[1:], start=1):
            A = backend.empty((batch_size, n_out), dtype)
            as_A = scratch[: A.size].reshape(A.shape)
            self._layers.append((A_prev, parameters[f"W{layer}"], parameters[f"b{layer}"], A, as_A))
            A_prev = A
        *self._hidden, self._last = self._layers
        Z = A_prev if mixed is None else backend.empty(A_prev.shape, network.dtype)
        self.output = OUTPUTS[network.output](backend, Z)
        if in_place:
            self.output.load(examples.targets, backend.asarray(np.arange(batch_size)))

    def load(self, rows: Array, fed: Array | None = None) -> None:
        """Take these rows of the examples as the batch; `fed` is X of just these, where the whole X is on the host."""
        examples = self._examples
        source, places = (examples.X, rows) if fed is None else (fed, self._in_order)
        self._gather(self._xp, source, places, examples.scale, out=self.X, scratch=self._unscaled)
        if examples.targets is not None:
            self.output.load(examples.targets, rows)

    def on_rows(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` on the examples that `rows` names when it runs: with that in it a step can be captured whole."""

        def loaded() -> None:
            self.load(self.rows)
            work()

        return loaded

    def logits(self) -> None:
        """Z_L from X."""
        xp, linear_activation = self._xp, self._linear_activation
        for A_prev, W, b, A, scratch in self._hidden:
            linear_activation(xp, A_prev, W, b, out=A, scratch=scratch)
        A_prev, W, b, Z, scratch = self._last
        self._linear(xp, A_prev, W, b, out=Z, scratch=scratch)

    def predict(self) -> None:
        """P from X."""
        self.logits()
        self.output.activate()

    def evaluate(self) -> None:
        """P, the loss and its tally, from X and the targets."""
        self.logits()
        self.output.forward()
        self.output.tally()


class TrainStep(Forward):
    """Forward, loss, backward, update. After a call `output.loss` is the batch's loss before the update."""

    def __init__(
        self,
        network: Network,
        update: Update,
        examples: Examples,
        batch_size: int,
        in_place: bool = False,
        precision: str | None = None,
        mixed: Mixed | None = None,
    ) -> None:
        super().__init__(network, examples, batch_size, in_place, precision, mixed)
        backend, gradients = network.backend, update.gradients if mixed is None else mixed.gradients
        dtype = gradients.dtype
        self._update = update
        self._linear_backward = backend.fused(functional.linear_backward, precision)
        self._ones = backend.empty(batch_size, dtype)
        self._ones.fill(1)
        # dA_{l-1} is computed from dZ_l into a buffer of its own, and becomes dZ_{l-1} there
        dZ = [backend.empty((batch_size, n_out), dtype) for n_out in network.layer_sizes[1:-1]]
        dZ.append(self.output.dZ if mixed is None else backend.empty(self.output.dZ.shape, dtype))
        self._backward = []
        for layer in range(len(dZ), 0, -1):
            A_prev, W, _, _, _ = self._layers[layer - 1]
            dA_prev, scratch = (dZ[layer - 2], self._layers[layer - 2][4]) if layer > 1 else (None, None)
            dW, db = gradients[f"W{layer}"], gradients[f"b{layer}"]
            self._backward.append((dZ[layer - 1], A_prev, W, dW, db, dA_prev, scratch))

    def __call__(self) -> None:
        self.evaluate()
        self.gradients()
        self._update()

    def gradients(self) -> None:
        """dW and db of every layer, after `evaluate`. The first layer's dX is not computed: nobody needs it."""
        xp, linear_backward, activation_backward = self._xp, self._linear_backward, self._activation_backward
        for dZ, A_prev, W, dW, db, dA_prev, scratch in self._backward:
            linear_backward(xp, dZ, A_prev, W, self._ones, dW=dW, db=db, dA_prev=dA_prev)
            if dA_prev is not None:
                activation_backward(xp, dA_prev, A_prev, out=dA_prev, scratch=scratch)


class MixedStep(TrainStep):
    """A TrainStep in 16 bits: on `mixed`'s copies of the parameters, its output and its update in float32."""

    def __init__(self, network: Network, update: Update, examples: Examples, batch_size: int, mixed: Mixed) -> None:
        super().__init__(network, update, examples, batch_size, mixed=mixed)
        self._mixed = mixed
        self._Z, self._dZ = self._last[3], self._backward[0][0]

    def __call__(self) -> None:
        self._mixed.take_weights()
        self.evaluate()
        self.gradients()
        self._mixed.update(self._update)

    def logits(self) -> None:
        super().logits()
        self._mixed.raise_logits(self._Z, out=self.output.Z)

    def gradients(self) -> None:
        self._mixed.lower_gradient(self.output.dZ, out=self._dZ)
        super().gradients()


def training_step(
    network: Network,
    update: Update,
    examples: Examples,
    batch_size: int,
    in_place: bool = False,
    precision: str | None = None,
    mixed: Mixed | None = None,
) -> TrainStep:
    """The step for batches of this size, on the working copies of `mixed` where there are any."""
    if mixed is not None:
        return MixedStep(network, update, examples, batch_size, mixed)
    return TrainStep(network, update, examples, batch_size, in_place, precision)

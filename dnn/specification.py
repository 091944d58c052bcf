"""What a network is asked to be: its settings as layers, and whether they can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dnn.activations import ACTIVATIONS
from dnn.errors import check_at_least, check_choice, check_number, check_rounded, check_whole
from dnn.heads import HEADS
from dnn.initializers import check_initializer
from dnn.layers import (
    NORMS,
    Activation,
    CategoricalEmbedding,
    Dense,
    Dropout,
    Layer,
    needs_data,
    walk,
    width_after,
)
from dnn.layers.ensemble import shared as shared_by_members
from dnn.losses import LOSSES, GaussianNLL, Loss, checked_loss, outputs_per_target, suits

DTYPES = ("float32", "float64")
INPUT_SCALES, TARGET_SCALES = ("standard", "robust"), ("standard",)
MOST_MEMBERS = 1024


def as_setting(value: Any) -> Any:
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


def name_taken(what: str, name: str, first: Layer, second: Layer) -> ValueError:
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
        if not can_scale_targets(loss):
            raise ValueError(
                f"target_scale is not for the loss {type(loss).__name__}, whose targets and answers have units of "
                "their own: leave it out"
            )


def can_scale_targets(loss: Loss | None) -> bool:
    """Whether the targets of this loss of a linear output can be scaled: they have no units of their own."""
    return isinstance(loss, GaussianNLL) or not (hasattr(loss, "answer") or hasattr(loss, "check_targets"))


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


def in_words(layer: Layer) -> str:
    """The class of a layer with its activation or rate, for a line of a table."""
    layer = getattr(layer, "dense", layer)
    for name in ("activation", "name", "rate", "kind"):
        if getattr(layer, name, None) is not None:
            return f"{type(layer).__name__} {getattr(layer, name)}"
    return type(layer).__name__

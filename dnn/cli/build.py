"""Settings as text, tables of flags, and the network that the flags describe."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from dnn.callbacks import EarlyStopping, checked_early_stopping
from dnn.data.schema import Schema
from dnn.errors import nearest
from dnn.heads import HEADS
from dnn.layers import NumericalEmbedding
from dnn.layers.embeddings import KINDS
from dnn.losses import BUILT_IN, checked_loss, outputs_per_target
from dnn.metrics import Pinball, TopK
from dnn.network import Network
from dnn.optimizers import OPTIMIZERS, checked_optimizer
from dnn.schedules import SCHEDULES, checked_schedule
from dnn.specification import can_scale_targets, specified

# ------------------------------------------------------------------------------------------ texts


def number(text: str) -> int | float | str | None:
    """What the text says: a number, none, or itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None if text == "none" else text


def each(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads one, or a list of several between commas."""

    def reading(text: str) -> Any:
        parts = [read(part.strip()) for part in text.split(",")]
        return parts if len(parts) > 1 else parts[0]

    return reading


def sizes(text: str) -> list[int]:
    if text == "none":
        return []
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 20,7,5, or none, got {text!r}") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"a layer needs at least 1 unit, got {text!r}")
    return found


def call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of `name` or `name(setting=value, ...)`, whose values are Python's literals."""
    if "(" not in text:
        return text, {}
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            settings = {given.arg: ast.literal_eval(given.value) for given in tree.keywords if given.arg}
            if len(settings) == len(tree.keywords):
                return tree.func.id, settings
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    raise argparse.ArgumentTypeError(
        f"expected a name or name(setting=value, ...) with numbers, 'texts', lists, True, False or None, got {text!r}"
    )


def configured(kinds: Mapping[str, Callable[..., Any]], checked: Callable[[Any], Any]) -> Callable[[str], Any]:
    """Reads a call of one of these; `checked` takes a name alone, and complains of one that is not known."""

    def reading(text: str) -> Any:
        name, settings = call(text)
        try:
            if name not in kinds or not settings:
                return checked(name)
            known = inspect.signature(kinds[name]).parameters
            for setting in settings:
                if setting not in known:
                    near = nearest(setting, known)
                    hint = f"did you mean {near}?" if near else f"it has {', '.join(known) or 'none'}"
                    raise ValueError(f"{name} has no setting {setting!r}: {hint}")
            return kinds[name](**settings)
        except (TypeError, ValueError) as wrong:
            raise argparse.ArgumentTypeError(str(wrong)) from None

    return reading


EARLY_STOPPING = {"early_stopping": EarlyStopping}
EMBEDDINGS = {kind: partial(NumericalEmbedding, kind) for kind in KINDS}
OF_METRICS = {"top_k": TopK, "pinball": Pinball}

optimizer = configured(OPTIMIZERS, checked_optimizer)
schedule = configured(SCHEDULES, checked_schedule)
loss = configured(BUILT_IN, checked_loss)
early_stopping = configured(
    EARLY_STOPPING, lambda name: checked_early_stopping(EarlyStopping() if name in EARLY_STOPPING else number(name))
)
embedding = configured(EMBEDDINGS, NumericalEmbedding)
_metric = configured(OF_METRICS, str)


def metrics(text: str) -> list[Any]:
    return [_metric(part.strip()) for part in re.split(r",(?![^()]*\))", text)]


def class_weight(text: str) -> Any:
    """A word, or the classes with their weights, as in 0=1,1=5."""
    if "=" not in text:
        return text
    pairs = [part.rpartition("=") for part in text.split(",")]
    return {int(name) if name.isdecimal() else name: number(weight) for name, _, weight in pairs}


# ------------------------------------------------------------------------------------------ flags


class Flag(NamedTuple):
    """A setting of this name as a flag; its default is Python's."""

    name: str
    metavar: str
    read: Callable[[str], Any]
    help: str


def add_flags(group: argparse._ActionsContainer, flags: list[Flag], of: Callable[..., Any]) -> None:
    """Add flags of the parameters of `of`."""
    parameters = inspect.signature(of).parameters
    for flag in flags:
        default = parameters[flag.name].default if flag.name in parameters else None
        shown = f" (default: {default})" if default and isinstance(default, (str, int, float)) else ""
        group.add_argument(
            f"--{flag.name.replace('_', '-')}",
            metavar=flag.metavar,
            type=flag.read,
            default=default,
            help=flag.help + shown,
        )


NETWORK = [
    Flag("activation", "NAME,...", each(str), "of the hidden layers, or one for each (default: relu)"),
    Flag("norm", "NAME,...", each(number), "before each activation: batch, layer, rms, none"),
    Flag("dropout", "F,...", each(number), "rate after each hidden layer"),
    Flag("initializer", "NAME,...", each(number), "initial weights: a name or a number"),
    Flag("numerical_embedding", "KIND", embedding, "first layer: piecewise_linear, periodic(size=16)"),
    Flag("loss", "NAME", loss, "what is minimised, as huber(delta=2) (default: the output's)"),
    Flag("members", "N", int, "networks in one, whose mean answers"),
    Flag("shared", "tabm", str, "members share their weights"),
    Flag("input_scale", "F", number, "factor of X, standard or robust (default: 1/255 for bytes)"),
    Flag("target_scale", "standard|none", str, "of a linear output's targets (default: of a table standard)"),
    Flag("seed", "N", int, "of weights, masks and shuffling"),
    Flag("dtype", "NAME", str, "float32 or float64"),
]


MEASURES = [
    Flag("metrics", "NAME,...", metrics, "more measures, as roc_auc,top_k(k=3)"),
    Flag("class_weight", "WEIGHTS", class_weight, "in the loss: balanced, or 0=1,1=5"),
    Flag("missing_targets", "error|mask", str, "what to do about targets that are nan"),
]
"""What is measured, in a training and of a model."""


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of `Network` as flags; `--backend` is `add_common`'s."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--hidden", metavar="N,N,...", type=sizes, default=[64], help="hidden layer sizes, or none (default: 64)"
    )
    group.add_argument("--output", metavar="NAME", choices=HEADS, help=f"{', '.join(HEADS)} (default: from the labels)")
    add_flags(group, NETWORK, Network)


def output_asked_for(given: argparse.Namespace) -> str | None:
    """The output that the flags decide: --output, or the only one that the loss or --target-scale are for."""
    if given.output is None and given.target_scale not in (None, "none"):
        return "linear"
    heads: Sequence[str] = getattr(given.loss, "heads", ())
    return heads[0] if given.output is None and len(heads) == 1 else given.output


def units_for(given: argparse.Namespace, targets: int) -> int:
    """The outputs for so many targets, or classes of a softmax."""
    return targets * (1 if given.loss is None else outputs_per_target(given.loss))


def network_from(
    given: argparse.Namespace, n_in: int, targets: int, output: str, schema: Schema | None = None
) -> Network:
    """The network that the flags describe, for so many targets, or classes of a softmax."""
    units = units_for(given, targets)
    layer_sizes, form = [n_in, *given.hidden, units], ("activation", "norm", "dropout", "initializer")
    settings = {flag.name: getattr(given, flag.name) for flag in NETWORK} | {"schema": schema}
    if given.target_scale is None and schema is not None and output == "linear":
        # the numbers of a table are in units of their own, in which a network would hardly learn
        settings["target_scale"] = "standard" if can_scale_targets(given.loss) else None
    elif given.target_scale == "none":
        settings["target_scale"] = None
    if (first := settings.pop("numerical_embedding")) is not None:
        layers = specified(layer_sizes, None, **{name: settings.pop(name) for name in form})
        initializer = given.initializer if not isinstance(given.initializer, list) else "he_normal"
        return Network(
            n_in, [first, *layers], output=output, initializer=initializer, backend=given.backend, **settings
        )
    return Network(layer_sizes, output=output, backend=given.backend, **settings)

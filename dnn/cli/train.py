"""dnn train: train on a data file, write a model file and its history."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
from contextlib import ExitStack
from typing import Any

import numpy as np

from dnn.activations import ACTIVATIONS
from dnn.cli.common import add_common, add_names, check_finite, in_words, inform, inform_device, read_labels, show
from dnn.data import Dataset, Part, open_dataset, prepare
from dnn.errors import DataError, OutputError
from dnn.files import check_writable, write_results
from dnn.heads import HEADS
from dnn.initializers import INITIALIZERS
from dnn.model_file import classes_of, model_bytes
from dnn.network import DTYPES, Network
from dnn.optimizers import OPTIMIZERS
from dnn.precision import PRECISIONS, check_precision
from dnn.training import History

FIT_SETTINGS = ("epochs", "batch_size", "validation_split", "shuffle", "memory_limit", "precision")
"""The fields of `dnn.training.FitSettings` that are flags of the same name."""
MANY_CLASSES, ENOUGH_EXAMPLES = 20, 5
"""Labels of more classes than this, with fewer examples for each on average, are taken for values."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network on a data file",
        description="Train on TRAIN.h5 and write DIR/model.h5 and DIR/history.csv. The labels determine the output "
        "layer: one sigmoid unit for two classes, softmax for more, linear for real values. Whole numbers from 0 "
        "without gaps are taken for classes, as floats too; --output decides.",
    )
    parser.add_argument(
        "data",
        metavar="TRAIN.h5",
        type=os.path.expanduser,
        help="train_set_x, train_set_y; test_set_x, test_set_y; list_classes",
    )
    parser.add_argument(
        "--test", metavar="TEST.h5", type=os.path.expanduser, help="the test part, if it is in a separate file"
    )
    add_names(parser)
    parser.add_argument(
        "--hidden", metavar="N,N,...", type=_sizes, default=[64], help="hidden layer sizes, or none (default: 64)"
    )
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, default="relu", help="of the hidden layers (default: relu)"
    )
    parser.add_argument("--output", choices=HEADS, help="output layer (default: from the labels)")
    parser.add_argument(
        "--initializer",
        choices=INITIALIZERS,
        default="he_normal",
        help="initial weights (default: he_normal)",
        metavar="NAME",
    )
    parser.add_argument("--epochs", metavar="N", type=int, default=20, help="passes over the data (default: 20)")
    parser.add_argument("--batch-size", metavar="N", type=int, default=64, help="examples per update (default: 64)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="(default: adam)")
    parser.add_argument(
        "--learning-rate", metavar="F", type=float, help="(default: 0.001 for adam, 0.01 for sgd and momentum)"
    )
    parser.add_argument(
        "--validation-split", metavar="F", type=float, default=0.0, help="fraction of train to hold out (default: 0)"
    )
    parser.add_argument(
        "--shuffle", action=argparse.BooleanOptionalAction, default=True, help="use a new order each epoch"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of weights and shuffling (default: 0)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: float32)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of training steps (default: that of --dtype)")
    parser.add_argument(
        "--input-scale", metavar="F", type=float, help="factor for X (default: 1/255 for bytes, else 1)"
    )
    parser.add_argument(
        "--memory-limit", metavar="GB", type=float, help="device memory to use (default: all that is free)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=os.path.expanduser, help="output folder (default: runs/<name of the data file>)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing model")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    name = os.path.splitext(os.path.basename(given.data))[0]
    if given.out == "":  # an unset variable of a script, not a wish for the default
        raise OutputError("--out: expected the name of a folder, got an empty one")
    out = given.out or os.path.join("runs", name)
    model_path, history_path = os.path.join(out, "model.h5"), os.path.join(out, "history.csv")
    with ExitStack() as files:
        train_data = files.enter_context(open_dataset(given.data, given.x, given.y))
        test_data = files.enter_context(open_dataset(given.test, given.x, given.y)) if given.test else train_data
        train, test = _parts(train_data, test_data)
        labels = read_labels(train)
        output, units = _output(given.output, labels, train_data)
        if train.X.ndim < 2 or 0 in train.X.shape:
            raise DataError(f"{given.data}: expected X of shape (examples, features), got {train.X.shape}")
        # settings and output paths are checked now, not after the training
        network = Network(
            [math.prod(train.X.shape[1:]), *given.hidden, units],
            activation=given.activation,
            output=output,
            initializer=given.initializer,
            seed=given.seed,
            dtype=given.dtype,
            input_scale=given.input_scale,
            backend=given.backend,
        )
        check_precision(network.dtype, network.backend, given.precision)
        network.classes = _class_names(train_data, network)
        optimizer = OPTIMIZERS[given.optimizer](
            **({"learning_rate": given.learning_rate} if given.learning_rate is not None else {})
        )
        if test is not None:
            _check_test(network, train, test)
        for path in (model_path, history_path):
            check_writable(path, given.force, [given.data, given.test or given.data])
        model_file, history_file = os.path.abspath(model_path), os.path.abspath(history_path)
        inform_device(given, network)
        guess = _guess(given.output, labels, train, train_data, network)
        inform(
            given, f"{len(labels)} examples, layers {'-'.join(map(str, network.layer_sizes))}, {output} output{guess}"
        )
        settings = {name: getattr(given, name) for name in FIT_SETTINGS}
        history = network.fit(train.X, labels, optimizer=optimizer, verbose=not given.quiet, **settings)
        measured = {"train": network.evaluate(train.X, labels)}
        if test is not None:
            measured["test"] = network.evaluate(test.X, test.Y)
        for split, values in measured.items():
            check_finite(network, values, split)
        write_results({history_file: _csv(history), model_file: model_bytes(network)}, given.force)
    if given.json:
        settings = {
            name: getattr(given, name)
            for name in ("data", "test", "hidden", "activation", "initializer", "epochs", "batch_size", "optimizer")
        }
        settings |= {"learning_rate": optimizer.learning_rate, "validation_split": given.validation_split}
        settings |= {"shuffle": given.shuffle, "seed": given.seed, "dtype": given.dtype, "output": output}
        settings |= {"precision": given.precision or given.dtype}
        settings |= {"input_scale": network.input_scale, "backend": network.backend.name}
        summary = {"model": model_path, "history": history_path, "settings": settings, "test": None}
        show(json.dumps(summary | measured | {"seconds": round(history.seconds, 3)}) + "\n")
    else:
        lines = [f"{split}: {in_words(values)}" for split, values in measured.items()]
        show("\n".join([*lines, f"model: {model_path}", ""]))


def _sizes(text: str) -> list[int]:
    if text == "none":
        return []
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 20,7,5, or none, got {text!r}") from None
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"a layer needs at least 1 unit, got {text!r}")
    return sizes


def _parts(train_data: Dataset, test_data: Dataset) -> tuple[Part, Part | None]:
    if train_data.train is None:
        raise DataError(f"{train_data.path}: no train part (no train_set_x): name its data sets with --x and --y")
    test = test_data.test
    if test is None and test_data is not train_data:
        # in a file given with --test, the only part may be called train
        test = test_data.train
    return train_data.train, test


def _check_test(network: Network, train: Part, test: Part) -> None:
    """Raise DataError, before the training rather than after it, if the test part cannot be evaluated."""
    if network.input_scale is None and (train.X.dtype == np.uint8) != (test.X.dtype == np.uint8):
        raise DataError(
            f"X_test is {test.X.dtype} but X is {train.X.dtype}, and only bytes are scaled: "
            "store both alike, or give --input-scale"
        )
    network.input_shape = tuple(train.X.shape[1:])
    prepare(network, test.X, test.Y, name="X_test")


def _output(asked: str | None, labels: np.ndarray, data: Dataset) -> tuple[str, int]:
    """The output, and its number of units, that these labels imply."""
    if labels.size == 0:
        raise DataError(f"{data.path}: expected at least one label, got an empty set")
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.shape[0] > 1:
        return _output_of_columns(asked, labels)
    whole = bool((np.isfinite(labels) & (np.floor(labels) == labels)).all())
    guessing = asked is None and data.classes is None
    # files written by way of text or a table have their class numbers as floats
    if labels.dtype.kind == "f" and asked != "softmax" and (not whole or (guessing and _doubt(labels))):
        return asked or "linear", 1
    if asked in ("sigmoid", "linear"):
        return asked, 1
    wrong = labels[~np.isfinite(labels) | (labels < 0) | (labels != np.floor(labels))]
    if wrong.size:
        raise DataError(
            f"{data.path}: expected class numbers from 0 up, got {wrong[0]}: number the classes from 0, or use "
            "--output linear for values"
        )
    largest = int(labels.max())
    classes = largest + 1 if data.classes is None else len(data.classes)
    if data.classes is not None and largest >= classes:
        raise DataError(f"{data.path}: label {largest} is out of range: list_classes names {classes} classes")
    if classes < 2:
        raise DataError(f"{data.path}: all labels are 0: expected at least two classes")
    if guessing and (doubt := _doubt(labels)):
        raise DataError(
            f"{data.path}: labels {labels.min():g} to {largest} of {len(labels)} examples do not look like class "
            f"numbers ({doubt}): use --output linear for values; number classes from 0 without gaps, or use --output "
            f"softmax for {classes} of them"
        )
    if asked == "softmax" or classes > 2:
        return "softmax", classes
    return "sigmoid", 1


def _doubt(labels: np.ndarray) -> str | None:
    """Why these whole numbers are unlikely to be class numbers, or None."""
    numbers = np.unique(labels)
    if numbers[0] < 0:
        return f"{numbers[0]:g} is among them"
    gaps = numbers != np.arange(len(numbers))
    if gaps.any():
        return f"there is no {gaps.argmax()}"
    classes = len(numbers)
    if classes > MANY_CLASSES and len(labels) < ENOUGH_EXAMPLES * classes:
        return f"{classes} different ones, fewer than {ENOUGH_EXAMPLES} examples of each"
    return None


def _guess(asked: str | None, labels: np.ndarray, train: Part, data: Dataset, network: Network) -> str:
    """What was guessed about the data, in words, with the flags that decide."""
    guesses, units = [], network.layer_sizes[-1]
    if asked is None and (data.classes is None or network.output == "linear"):
        columns = labels.ndim == 2 and labels.shape[1] > 1 and labels.shape[0] > 1
        if network.output == "linear":
            fix = "sigmoid for probabilities" if _are_shares(labels) else "softmax for classes"
            guesses.append(f"the labels are real values; --output {fix}")
        elif columns and network.output == "sigmoid":
            guesses.append(f"the labels are {units} yes or no each; --output linear for real values")
        elif columns:
            guesses.append(f"the labels are {units} classes, one-hot; --output sigmoid for independent labels")
        else:
            guesses.append(f"the labels are {max(units, 2)} classes; --output linear for real values")
    if network.input_scale is None and train.X.dtype == np.uint8:
        guesses.append("X are pixels, scaled by 1/255; --input-scale 1 for numbers as they are")
    return f" (guessed: {'. '.join(guesses)})" if guesses else ""


def _are_shares(labels: np.ndarray) -> bool:
    return bool(labels.min() >= 0 and labels.max() <= 1)


def _output_of_columns(asked: str | None, labels: np.ndarray) -> tuple[str, int]:
    columns = labels.shape[1]
    if asked is not None:
        return asked, columns
    if not np.isin(labels, (0, 1)).all():
        return "linear", columns
    return ("softmax" if (labels.sum(axis=1) == 1).all() else "sigmoid"), columns


def _class_names(data: Dataset, network: Network) -> list[str] | None:
    if network.output == "linear" or data.classes is None or len(data.classes) != classes_of(network.layer_sizes):
        return None
    return data.classes


def _csv(history: History) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", *history.history])
    writer.writerows(zip(history.epoch, *history.history.values(), strict=True))
    return text.getvalue().encode()

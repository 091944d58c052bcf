"""dnn train: train on a data file, write a model file and its history."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import math
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import numpy as np

from dnn.activations import ACTIVATIONS
from dnn.cli import build
from dnn.cli.build import Flag
from dnn.cli.common import (
    add_common,
    add_names,
    check_finite,
    for_json,
    in_words,
    inform,
    inform_device,
    read_labels,
    show,
)
from dnn.data import Dataset, Part, open_dataset, prepare
from dnn.errors import DataError, OutputError
from dnn.files import check_writable, write_results
from dnn.initializers import INITIALIZERS
from dnn.losses import LOSSES, loss_config
from dnn.metrics import METRICS
from dnn.model_file import classes_of, model_bytes
from dnn.network import Network
from dnn.optimizers import OPTIMIZERS
from dnn.schedules import SCHEDULES
from dnn.settings import FitSettings
from dnn.training import History, Trainer

OPTIMIZER = [
    Flag("optimizer", "NAME", build.optimizer, "as adamw(beta2=0.95) (default: adam)"),
    Flag("learning_rate", "F", float, "(default: the optimizer's, 0.001 for adam)"),
    Flag("weight_decay", "F", float, "decoupled (default: the optimizer's, 0 for adam)"),
    Flag("schedule", "NAME", build.schedule, "of the learning rate, as cosine(warmup=1)"),
    Flag("weight_decay_schedule", "NAME", build.schedule, "of the weight decay"),
    Flag("l1", "F", float, "penalty l1 sum |w|"),
    Flag("l2", "F", float, "penalty l2/2 sum w^2"),
    Flag("clip_norm", "F", float, "bound of the norm of all gradients"),
    Flag("clip_value", "F", float, "bound of each gradient"),
    Flag("max_norm", "F", float, "bound of the norm of each unit's weights"),
    Flag("accumulate", "N", int, "batches for each update"),
    Flag("moving_average", "F", float, "decay of the average of weights to keep"),
]
TRAINING = [
    Flag("epochs", "N", int, "passes over the data"),
    Flag("batch_size", "N", int, "examples per step"),
    Flag("validation_split", "F", float, "fraction of train to hold out"),
    Flag("early_stopping", "N", build.early_stopping, "epochs to wait, or early_stopping(monitor=...)"),
    *build.MEASURES,
    Flag("precision", "NAME", str, "of training steps (default: that of --dtype)"),
    Flag("memory_limit", "GB", float, "device memory to use (default: all that is free)"),
]
CHOICES: dict[str, Iterable[str]] = {
    "Activations": ACTIVATIONS,
    "Losses": LOSSES,
    "Optimizers": OPTIMIZERS,
    "Schedules": SCHEDULES,
    "Metrics": METRICS,
    "Initializers": INITIALIZERS,
}
OF_OPTIMIZER = "learning_rate", "weight_decay"
"""Flags that are settings of the optimizer, whichever it is, and replace those in its call."""
NAMES: dict[type[Any], str] = {
    kind: name for kinds in (OPTIMIZERS, SCHEDULES, build.EARLY_STOPPING) for name, kind in kinds.items()
}
MANY_CLASSES, ENOUGH_EXAMPLES = 20, 5
"""Labels of more classes than this, with fewer examples for each on average, are taken for values."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        usage="dnn train TRAIN.h5 [--SETTING VALUE ...]",
        help="train a network on a data file",
        description="Train on TRAIN.h5 and write DIR/model.h5 and DIR/history.csv. The labels determine the output "
        "layer: one sigmoid unit for two classes, softmax for more, linear for real values. Whole numbers from 0 "
        "without gaps are taken for classes, as floats too; --output decides.",
        epilog=". ".join(f"{what}: {', '.join(names)}" for what, names in CHOICES.items())
        + ". Settings are given as in adamw(beta2=0.95).",
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=34),
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "data",
        metavar="TRAIN.h5",
        type=os.path.expanduser,
        help="train_set_x, train_set_y; test_set_x, test_set_y; list_classes",
    )
    data.add_argument("--test", metavar="TEST.h5", type=os.path.expanduser, help="the test part, if in a separate file")
    add_names(data)
    build.add_network_flags(parser)
    build.add_flags(parser.add_argument_group("optimizer"), OPTIMIZER, FitSettings)
    training = parser.add_argument_group("training")
    build.add_flags(training, TRAINING, FitSettings)
    training.add_argument(
        "--shuffle", action=argparse.BooleanOptionalAction, default=True, help="use a new order each epoch"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="DIR", type=os.path.expanduser, help="folder (default: runs/<name of the data file>)"
    )
    output.add_argument("--force", action="store_true", help="replace an existing model")
    output.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    add_common(output)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    name = os.path.splitext(os.path.basename(given.data))[0]
    if given.out == "":  # an unset variable of a script, not a wish for the default
        raise OutputError("--out: expected the name of a folder, got an empty one")
    out = given.out or os.path.join("runs", name)
    model_path, history_path = os.path.join(out, "model.h5"), os.path.join(out, "history.csv")
    settings = _fit_settings(given)
    missing = settings.missing_targets == "mask"
    with ExitStack() as files:
        train_data = files.enter_context(open_dataset(given.data, given.x, given.y))
        test_data = files.enter_context(open_dataset(given.test, given.x, given.y)) if given.test else train_data
        train, test = _parts(train_data, test_data)
        labels = read_labels(train)
        asked, known = build.output_asked_for(given), _known(labels) if missing else labels
        output, targets = _output(asked, known, train_data)
        if train.X.ndim < 2 or 0 in train.X.shape:
            raise DataError(f"{given.data}: expected X of shape (examples, features), got {train.X.shape}")
        # settings and output paths are checked now, not after the training
        network = build.network_from(given, math.prod(train.X.shape[1:]), targets, output)
        Trainer(network, settings)
        network.classes = _class_names(train_data, network)
        if test is not None:
            _check_test(network, train, test, missing)
        for path in (model_path, history_path):
            check_writable(path, given.force, [given.data, given.test or given.data])
        model_file, history_file = os.path.abspath(model_path), os.path.abspath(history_path)
        inform_device(given, network)
        guess = _guess(asked, known, train, train_data, network)
        inform(
            given, f"{len(labels)} examples, layers {'-'.join(map(str, network.layer_sizes))}, {output} output{guess}"
        )
        history = network.fit(train.X, labels, **vars(settings))
        # of several targets, metrics that look at whole examples are not defined where some are missing
        metrics = () if missing and network.targets > 1 else settings.metrics
        measured = {
            split: network.evaluate(part.X, Y, metrics=metrics, missing_targets=settings.missing_targets)
            for split, part, Y in (("train", train, labels), ("test", test, None if test is None else test.Y))
            if part is not None
        }
        for split, values in measured.items():
            check_finite(network, values, split)
        write_results({history_file: _csv(history), model_file: model_bytes(network)}, given.force)
    if given.json:
        summary: dict[str, Any] = {"model": model_path, "history": history_path}
        summary |= {"settings": _used(given, network, settings), "test": None, **measured}
        summary |= {"best_epoch": history.best_epoch, "stopped": history.stopped}
        show(json.dumps(for_json(summary | {"seconds": round(history.seconds, 3)})) + "\n")
    else:
        lines = [f"{split}: {in_words(values)}" for split, values in measured.items()]
        if history.best_epoch is not None:
            lines.append(f"early stopping: restored epoch {history.best_epoch} of {history.epoch[-1]}")
        show("\n".join([*lines, f"model: {model_path}", ""]))


def _fit_settings(given: argparse.Namespace) -> FitSettings:
    of_optimizer = {name: getattr(given, name) for name in OF_OPTIMIZER if getattr(given, name) is not None}
    names = [flag.name for flag in (*OPTIMIZER, *TRAINING) if flag.name not in (*OF_OPTIMIZER, "optimizer")]
    return FitSettings(
        optimizer=replace(given.optimizer, **of_optimizer),
        shuffle=given.shuffle,
        verbose=not given.quiet,
        **{name: getattr(given, name) for name in names},
    )


def _used(given: argparse.Namespace, network: Network, settings: FitSettings) -> dict[str, Any]:
    """Every setting of this training, by the name of its flag."""
    optimizer = settings.optimizer
    of_network = {flag.name: getattr(given, flag.name) for flag in build.NETWORK}
    of_network |= {"activation": given.activation or "relu", "loss": loss_config(network.loss_function)}
    of_network |= {"output": network.output, "input_scale": network.input_scale, "backend": network.backend.name}
    of_fit = {flag.name: getattr(settings, flag.name, None) for flag in (*OPTIMIZER, *TRAINING)}
    of_fit |= {name: getattr(optimizer, name) for name in OF_OPTIMIZER}
    of_fit |= {"shuffle": settings.shuffle, "precision": settings.precision or network.dtype.name}
    of_fit |= {"metrics": [getattr(metric, "name", metric) for metric in settings.metrics]}
    described = {name: _described(value) for name, value in (of_network | of_fit).items()}
    return {"data": given.data, "test": given.test, "hidden": given.hidden, **described, "threads": given.threads}


def _described(value: Any) -> Any:
    """A configuration as its name and settings."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    name = NAMES.get(type(value))
    return ({} if name is None else {"name": name}) | asdict(value)


def _parts(train_data: Dataset, test_data: Dataset) -> tuple[Part, Part | None]:
    if train_data.train is None:
        raise DataError(f"{train_data.path}: no train part (no train_set_x): name its data sets with --x and --y")
    test = test_data.test
    if test is None and test_data is not train_data:
        # in a file given with --test, the only part may be called train
        test = test_data.train
    return train_data.train, test


def _known(labels: np.ndarray) -> np.ndarray:
    """The labels but those that are nan; of several columns all."""
    one = labels.ndim == 1 or labels.shape[1:] == (1,)
    return labels[~np.isnan(labels)] if one and labels.dtype.kind == "f" else labels


def _check_test(network: Network, train: Part, test: Part, missing: bool) -> None:
    """Raise DataError, before the training rather than after it, if the test part cannot be evaluated."""
    if network.input_scale is None and (train.X.dtype == np.uint8) != (test.X.dtype == np.uint8):
        raise DataError(
            f"X_test is {test.X.dtype} but X is {train.X.dtype}, and only bytes are scaled: "
            "store both alike, or give --input-scale"
        )
    network.input_shape = tuple(train.X.shape[1:])
    scales = network.input_scale, network.target_scale
    if isinstance(network.input_scale, str):  # the training part, which is not yet known, decides
        network.input_scale = 1.0
    network.target_scale = None
    prepare(network, test.X, test.Y, name="X_test", missing=missing)
    network.input_scale, network.target_scale = scales


def _output(asked: str | None, labels: np.ndarray, data: Dataset) -> tuple[str, int]:
    """The output, and the number of its targets or classes, that these labels imply."""
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
    return bool(np.nanmin(labels) >= 0 and np.nanmax(labels) <= 1)


def _output_of_columns(asked: str | None, labels: np.ndarray) -> tuple[str, int]:
    columns = labels.shape[1]
    if asked is not None:
        return asked, columns
    if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
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
    columns = [[np.asarray(value).tolist() for value in values] for values in history.history.values()]
    writer.writerows(zip(history.epoch, *columns, strict=True))
    return text.getvalue().encode()

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
from dnn.checkpoint import can_be_resumed, check_same, numbered, real_folder, remove_all, resume
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
from dnn.cli.data import FILES, TABLE_FLAGS, add_table_flags, name_of_run, open_data, schema_of
from dnn.cli.guess import guesses, known_labels, output_for
from dnn.data import Dataset, Part, prepare
from dnn.errors import DataError, NonFiniteLossError, OutputError
from dnn.files import ResultsBeside, check_writable, write_results
from dnn.initializers import INITIALIZERS
from dnn.interrupt import Terminated
from dnn.losses import LOSSES, loss_config
from dnn.metrics import METRICS
from dnn.model_file import classes_of, model_bytes
from dnn.network import Network
from dnn.optimizers import OPTIMIZERS
from dnn.schedules import SCHEDULES
from dnn.settings import OF_DATA, FitSettings
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


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        usage="dnn train DATA.h5|.csv|.parquet [--SETTING VALUE ...]",
        help="train a network on a data file",
        description="Train on DATA and write DIR/model.h5 and DIR/history.csv. The labels determine the output "
        "layer: one sigmoid unit for two classes, softmax for more, linear for real values. Whole numbers from 0 "
        "without gaps are taken for classes, as floats too; --output decides. Ctrl-C, SIGTERM and SIGHUP end it after "
        "the current step, with a checkpoint in DIR, from which --resume auto goes on to the same bits.",
        epilog=". ".join(f"{what}: {', '.join(names)}" for what, names in CHOICES.items())
        + ". Settings are given as in adamw(beta2=0.95).",
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=34),
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "data",
        metavar=FILES,
        type=os.path.expanduser,
        help="train_set_x, train_set_y, test_set_x, ...; or a table",
    )
    data.add_argument("--test", metavar="FILE", type=os.path.expanduser, help="the test part, if in a separate file")
    add_names(data)
    add_table_flags(data, learning=True)
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
    output.add_argument("--force", action="store_true", help="replace a model, or another run's checkpoints")
    output.add_argument(
        "--checkpoint-every",
        metavar="N|TIME",
        type=build.number,
        default="300s",
        help="steps, or a time (default: 300s), or none",
    )
    output.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="go on from the last checkpoint, if there is one",
    )
    output.add_argument(
        "--training-state",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the optimizer's state in the model",
    )
    output.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    add_common(output)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    name = name_of_run(given.data)
    if given.out == "":  # an unset variable of a script, not a wish for the default
        raise OutputError("--out: expected the name of a folder, got an empty one")
    out = given.out or os.path.join("runs", name)
    model_path, history_path = os.path.join(out, "model.h5"), os.path.join(out, "history.csv")
    settings = _fit_settings(given, out)
    missing = settings.missing_targets == "mask"
    with ExitStack() as files:
        train_data = files.enter_context(open_data(given, given.data))
        test_data = files.enter_context(open_data(given, given.test, train_data)) if given.test else train_data
        train, test = _parts(train_data, test_data)
        labels = read_labels(train)
        asked, known = build.output_asked_for(given), known_labels(labels) if missing else labels
        output, targets = output_for(asked, known, train_data)
        if len(train.X.shape) < 2 or 0 in train.X.shape:
            raise DataError(f"{given.data}: expected X of shape (examples, features), got {train.X.shape}")
        # settings and output paths are checked now, not after the training
        schema = schema_of(given, train.X, labels, output, build.units_for(given, targets))
        n_in = math.prod(train.X.shape[1:]) if schema is None else schema.width
        network = build.network_from(given, n_in, targets, output, schema)
        Trainer(network, settings)
        network.classes = _class_names(train_data, network)
        resumed = _resumed(given, out, network)
        if test is not None:
            _check_test(network, train, test, missing)
        # the results of the run that goes on are its own
        force = given.force or (resumed is not None and resumed.run_folder == real_folder(out))
        for path in (model_path, history_path):
            check_writable(path, force, [given.data, given.test or given.data])
        folder = os.path.abspath(out)
        model_file, history_file = os.path.join(folder, "model.h5"), os.path.join(folder, "history.csv")
        inform_device(given, network)
        scaled = given.target_scale is None and network.target_scale is not None
        guess = guesses(asked, known, train, train_data, network, scaled)
        inform(
            given, f"{len(labels)} examples, layers {'-'.join(map(str, network.layer_sizes))}, {output} output{guess}"
        )
        if resumed is not None:
            network = resumed
            _inform_where(given, resumed)
        elif given.force:
            remove_all(out)
        try:
            history = network.fit(train.X, labels, **_keywords(settings))
        except NonFiniteLossError:
            if left := numbered(out):
                inform(given, f"{left[0][1]} is a model as of the last finite epoch")
            raise
        except (KeyboardInterrupt, Terminated):
            if left := numbered(out):
                inform(given, f"{left[0][1]} is the last checkpoint: go on with --resume auto")
            raise
        # of several targets, metrics that look at whole examples are not defined where some are missing
        metrics = () if missing and network.targets > 1 else settings.metrics
        measured = {
            split: network.evaluate(part.X, Y, metrics=metrics, missing_targets=settings.missing_targets)
            for split, part, Y in (("train", train, labels), ("test", test, None if test is None else test.Y))
            if part is not None
        }
        for split, values in measured.items():
            check_finite(network, values, split)
        model = model_bytes(network, given.training_state)
        try:
            write_results({history_file: _csv(history), model_file: model}, force)
        except ResultsBeside:
            remove_all(folder)
            raise
        remove_all(folder)
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


def _resumed(given: argparse.Namespace, out: str, network: Network) -> Network | None:
    """The network to go on with; None where the run is a new one. An error where it is of another network."""
    if given.resume is None:
        return None
    if not given.resume:
        raise OutputError("--resume: expected auto or the path of a run or a checkpoint, got an empty one")
    path = out if given.resume == "auto" else os.path.expanduser(given.resume)
    if given.resume == "auto" and not can_be_resumed(path):
        inform(given, f"no checkpoint in {path}: a new run")
        return None
    found = resume(path, given.backend)
    check_same(path, found, network)
    return found


def _inform_where(given: argparse.Namespace, network: Network) -> None:
    fit = network.unfinished
    assert fit is not None
    if fit.is_over(given.epochs):
        inform(given, f"all of its {fit.epoch} epochs are done: nothing is left to train")
        return
    after = f"{fit.batch} steps after epoch {fit.epoch}" if fit.batch else f"after epoch {fit.epoch}"
    inform(given, f"going on from checkpoint {fit.number}, {after} of {given.epochs}")


def _keywords(settings: FitSettings) -> dict[str, Any]:
    return {name: value for name, value in vars(settings).items() if name not in OF_DATA}


def _fit_settings(given: argparse.Namespace, out: str) -> FitSettings:
    of_optimizer = {name: getattr(given, name) for name in OF_OPTIMIZER if getattr(given, name) is not None}
    names = [flag.name for flag in (*OPTIMIZER, *TRAINING) if flag.name not in (*OF_OPTIMIZER, "optimizer")]
    return FitSettings(
        optimizer=replace(given.optimizer, **of_optimizer),
        shuffle=given.shuffle,
        verbose=not given.quiet,
        checkpoint=os.path.abspath(out),
        checkpoint_every=given.checkpoint_every,
        **{name: getattr(given, name) for name in names},
    )


def _used(given: argparse.Namespace, network: Network, settings: FitSettings) -> dict[str, Any]:
    """Every setting of this training, by the name of its flag."""
    optimizer = settings.optimizer
    of_network = {flag.name: getattr(given, flag.name) for flag in build.NETWORK}
    of_network |= {"activation": given.activation or "relu", "loss": loss_config(network.loss_function)}
    of_network |= {"output": network.output, "input_scale": network.input_scale, "backend": network.backend.name}
    of_network |= {"target_scale": network.target_scale}
    of_fit = {flag.name: getattr(settings, flag.name, None) for flag in (*OPTIMIZER, *TRAINING)}
    of_fit |= {name: getattr(optimizer, name) for name in OF_OPTIMIZER}
    of_fit |= {"shuffle": settings.shuffle, "precision": settings.precision or network.dtype.name}
    of_fit |= {"metrics": [getattr(metric, "name", metric) for metric in settings.metrics]}
    described = {name: _described(value) for name, value in (of_network | of_fit).items()}
    is_table = network.schema is not None
    of_table = {name: getattr(given, name) if is_table else None for name in TABLE_FLAGS}
    of_data = {"data": given.data, "test": given.test, **of_table}
    return {**of_data, "hidden": given.hidden, **described, "threads": given.threads}


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


def _check_test(network: Network, train: Part, test: Part, missing: bool) -> None:
    """Raise DataError, before the training rather than after it, if the test part cannot be evaluated."""
    if network.input_scale is None and (train.X.dtype == np.uint8) != (test.X.dtype == np.uint8):
        raise DataError(
            f"X_test is {test.X.dtype} but X is {train.X.dtype}, and only bytes are scaled: "
            "store both alike, or give --input-scale"
        )
    if network.schema is None:  # which finds the columns of the test part itself
        network.input_shape = tuple(train.X.shape[1:])
    scales = network.input_scale, network.target_scale
    if isinstance(network.input_scale, str):  # the training part, which is not yet known, decides
        network.input_scale = 1.0
    network.target_scale = None
    prepare(network, test.X, test.Y, name="X_test", missing=missing)
    network.input_scale, network.target_scale = scales


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

"""dnn check: compare a network's gradient with differences of its loss."""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import asdict
from typing import Any

from dnn.cli.build import (
    NETWORK,
    Flag,
    add_flags,
    add_network_flags,
    class_weight,
    network_from,
    output_asked_for,
    units_for,
)
from dnn.cli.common import (
    add_common,
    add_names,
    chosen_part,
    for_json,
    inform_device,
    read_labels,
    show,
)
from dnn.cli.data import FILES, add_table_flags, open_data, open_data_for, schema_of
from dnn.cli.guess import known_labels, output_for
from dnn.data import Dataset, Part
from dnn.errors import DataError
from dnn.gradient_check import gradient_check
from dnn.model_file import load
from dnn.network import Network

CHECK_FAILED = 1
CHECK = [
    Flag("examples", "N", int, "in the batch, chosen by the seed"),
    Flag("coordinates", "N", int, "of each parameter, one by one"),
    Flag("class_weight", "W", class_weight, "balanced, or as in 0=1,1=5"),
    Flag("missing_targets", "mask", str, "nan among the labels: error, or mask"),
]


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="compare a network's gradient with differences of its loss",
        description="For every parameter of a new network, made of the flags as dnn train makes it, or of a model: "
        "whether the backward pass gives the derivative of the loss, in float64, on a batch of the data. Exit status "
        "1 if one is wrong, or could not be checked.",
    )
    parser.add_argument("data", metavar=FILES, type=os.path.expanduser)
    parser.add_argument("--model", metavar="MODEL.h5", type=os.path.expanduser, help="a model, not a new network")
    add_names(parser)
    add_table_flags(parser, learning=True)
    add_flags(parser, CHECK, gradient_check)
    add_network_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    model = None if given.model is None else _model(given)
    with open_data(given, given.data) if model is None else open_data_for(given, model) as data:
        split, part = chosen_part(data, "test" if data.train is None else "train")
        network = _new_network(given, data, part) if model is None else model
        inform_device(given, network)
        settings = {flag.name: getattr(given, flag.name) for flag in CHECK}
        found = gradient_check(network, part.X, part.Y, seed=given.seed, **settings)
    if given.json:
        rows = [asdict(row) | {"passed": row.passed} for row in found.rows]
        summary = {"data": given.data, "split": split, "examples": found.examples, "loss": found.loss}
        summary |= {"dtype": "float64", "tolerance": found.tolerance, "passed": found.passed, "parameters": rows}
        show(json.dumps(for_json(summary)) + "\n")
    else:
        show(f"{found}\n")
    return 0 if found else CHECK_FAILED


def _model(given: argparse.Namespace) -> Network:
    """The model; its network is not for flags to change."""
    for name in ("hidden", "output", "drop", "categories", "scaling", *(flag.name for flag in NETWORK)):
        if name != "seed" and getattr(given, name) != given.parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} is for a new network: leave it out, or --model")
    return load(given.model, backend=given.backend)


def _new_network(given: argparse.Namespace, data: Dataset, part: Part) -> Network:
    if len(part.X.shape) < 2 or 0 in part.X.shape:
        raise DataError(f"{given.data}: expected X of shape (examples, features), got {part.X.shape}")
    labels = read_labels(part)
    known = known_labels(labels) if given.missing_targets == "mask" else labels
    output, targets = output_for(output_asked_for(given), known, data)
    schema = schema_of(given, part.X, labels, output, units_for(given, targets))
    n_in = math.prod(part.X.shape[1:]) if schema is None else schema.width
    return network_from(given, n_in, targets, output, schema)

"""dnn evaluate: compute a model's loss and metric on a data file."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from dnn.cli.build import MEASURES, add_flags
from dnn.cli.common import (
    add_common,
    add_names,
    add_split,
    check_finite,
    chosen_part,
    for_json,
    in_words,
    inform_device,
    show,
)
from dnn.data import open_dataset
from dnn.model_file import load
from dnn.network import Network


def add(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="compute a model's loss and accuracy on a data file")
    parser.add_argument("model", metavar="MODEL.h5", type=os.path.expanduser)
    parser.add_argument("data", metavar="DATA.h5", type=os.path.expanduser)
    add_split(parser)
    add_names(parser)
    add_flags(parser, MEASURES, Network.evaluate)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    network = load(given.model, backend=given.backend)
    inform_device(given, network)
    with open_dataset(given.data, given.x, given.y) as data:
        split, part = chosen_part(data, given.split)
        examples = len(part.Y)
        measured = network.evaluate(part.X, part.Y, **{flag.name: getattr(given, flag.name) for flag in MEASURES})
    check_finite(network, measured, split)
    if given.json:
        show(json.dumps({"data": given.data, "split": split, "examples": examples, **for_json(measured)}) + "\n")
    else:
        show(f"{split}: {examples} examples, {in_words(measured)}\n")

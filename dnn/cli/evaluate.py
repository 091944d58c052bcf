"""dnn evaluate: compute a model's loss and metric on a data file."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from dnn.cli.build import MEASURES, add_flags
from dnn.cli.common import (
    add_common,
    add_isolate,
    add_names,
    add_split,
    check_finite,
    chosen_part,
    for_json,
    in_words,
    inform_device,
    show,
)
from dnn.cli.data import FILES, add_table_flags, open_data_for
from dnn.data.tables import is_table_file
from dnn.errors import printable
from dnn.model_file import load
from dnn.network import Network


def add(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="compute a model's loss and accuracy on a data file")
    parser.add_argument("model", metavar="MODEL.h5", type=os.path.expanduser)
    parser.add_argument("data", metavar=FILES, type=os.path.expanduser)
    add_split(parser)
    add_names(parser)
    add_table_flags(parser)
    add_flags(parser, MEASURES, Network.evaluate)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_isolate(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    network = load(given.model, backend=given.backend)
    inform_device(given, network)
    with open_data_for(given, network) as data:
        split, part = chosen_part(data, given.split)
        whole = is_table_file(given.data)  # which has no parts
        examples = len(part.Y)
        measured = network.evaluate(part.X, part.Y, **{flag.name: getattr(given, flag.name) for flag in MEASURES})
    check_finite(network, measured, split)
    if given.json:
        of = None if whole else split
        show(json.dumps({"data": given.data, "split": of, "examples": examples, **for_json(measured)}) + "\n")
    else:
        name = printable(os.path.basename(given.data)) if whole else split
        show(f"{name}: {examples} examples, {in_words(measured)}\n")

#!/usr/bin/env python3
"""Measure what converting a CSV file takes, in time and memory, beside pandas' read_csv with to_hdf.

    python scripts/table_check.py [--rows 1000000] [--columns 30] [--categories 10] [--repeats 5] [--folder DIR]

Makes the file, runs each way in a process of its own, one after the other in turn, and prints a table of medians.
Memory is the peak of resident memory (VmHWM) over what the interpreter and its imports take. Needs pyarrow, pandas and
tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

START = """
import json, sys, time
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
source, out = sys.argv[1:]
"""
END = """
print(json.dumps({"seconds": time.perf_counter() - began, "MB": peak() - before, "imports": before}))
"""
WAYS = {
    "dnn": """
import h5py, pyarrow.csv, pyarrow.compute
from dnn.data import tables, writing
before, began = peak(), time.perf_counter()
tables.convert_table(source, out, "target", force=True)
""",
    "pandas, fixed": """
import warnings, pandas, tables
warnings.simplefilter("ignore")  # of columns that are pickled
before, began = peak(), time.perf_counter()
pandas.read_csv(source).to_hdf(out, key="table", mode="w")
""",
    "pandas, table": """
import pandas, tables
before, began = peak(), time.perf_counter()
pandas.read_csv(source).to_hdf(out, key="table", mode="w", format="table")
""",
    "pandas (pyarrow), fixed": """
import warnings, pandas, pyarrow.csv, tables
warnings.simplefilter("ignore")
before, began = peak(), time.perf_counter()
pandas.read_csv(source, engine="pyarrow").to_hdf(out, key="table", mode="w")
""",
    "dnn, learning the schema": """
import h5py
from dnn.data import open_dataset
from dnn.data.schema import Schema
before, began = peak(), time.perf_counter()
with open_dataset(out) as data:
    Schema.learn(data.train.X)
""",
    "dnn, encoding": """
import h5py
from dnn.data import open_dataset
from dnn.data.schema import Schema
import numpy
with open_dataset(out) as data:
    schema = Schema.learn(data.train.X, rows=numpy.arange(1000))
    before, began = peak(), time.perf_counter()
    rows = schema.encoded(data.train.X)
    for start in range(0, rows.shape[0], 4096):
        rows[start:start + 4096]
""",
}


def make(path: Path, rows: int, columns: int, categories: int) -> None:
    """A file of numbers, some of them missing, and categories of 2 to 100 values, in any order, and a target."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        for first in range(0, rows, 100_000):
            m = min(100_000, rows - first)
            frame = {}
            for j in range(columns - 1):
                if j % columns < categories:
                    values = [f"value {k}" for k in range(2 + 98 * j // max(1, categories - 1))]
                    frame[f"category {j}"] = rng.choice(values, m)
                elif j % 2:
                    frame[f"whole {j}"] = rng.integers(0, 100_000, m)
                else:
                    frame[f"number {j}"] = np.where(rng.random(m) < 0.02, np.nan, rng.normal(size=m).round(6))
            frame["target"] = rng.normal(size=m).round(4)
            pd.DataFrame(frame).to_csv(file, index=False, header=first == 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--categories", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="for the files (default: a temporary one)")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        source = Path(folder, "table.csv")
        make(source, given.rows, given.columns, given.categories)
        print(f"{given.rows} rows, {given.columns} columns, {given.categories} of them categories: ", end="")
        print(f"{source.stat().st_size / 1e6:.0f} MB of CSV; medians of {given.repeats}", flush=True)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in given.ways}
        for _ in range(given.repeats):
            for way in found:
                out = Path(folder, "dnn.h5" if way.startswith("dnn") else "pandas.h5")
                code = START + WAYS[way] + END
                done = subprocess.run([sys.executable, "-c", code, source, out], capture_output=True, text=True)
                if done.returncode:
                    print(f"{way}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'':26}{'seconds':>9}{'MB':>8}{'imports, MB':>13}")
    for way, runs in found.items():
        if runs:
            seconds, megabytes, imports = (
                statistics.median(run[name] for run in runs) for name in ("seconds", "MB", "imports")
            )
            print(f"{way:26}{seconds:9.2f}{megabytes:8.0f}{imports:13.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write scikit-learn's bundled digits to an HDF5 file in the assignment's layout.

    python scripts/make_dataset.py runs/digits.h5

1797 grayscale images of 8 x 8 bytes: 1437 for training and 360 for testing, drawn at random with a fixed seed.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from dnn.errors import OutputError
from dnn.files import check_writable, write_whole

TEST = 360


def digits_file() -> bytes:
    from sklearn.datasets import load_digits

    digits = load_digits()
    X = np.round(digits.images * 255 / 16).astype(np.uint8)
    Y = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(X))
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for split, rows in (("train", order[TEST:]), ("test", order[:TEST])):
            file[f"{split}_set_x"] = X[rows]
            file[f"{split}_set_y"] = Y[rows]
        file["list_classes"] = np.array([str(name).encode() for name in digits.target_names])
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="FILE.h5", help="replaced if it exists")
    path = parser.parse_args().out
    try:
        check_writable(path, force=True)
        write_whole({path: digits_file()})
    except OutputError as error:
        sys.exit(f"make_dataset.py: {error}")


if __name__ == "__main__":
    main()
